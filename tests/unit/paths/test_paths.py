"""Text and multimodal path: by context, call, thread, task and row, in training and generation."""

import asyncio
import contextvars
import copy
import io
import threading
import warnings
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from tiny import FAMILIES, applied, computed, perturbed, planned, tiny_model, tokens
from transformers import DynamicCache, StaticCache

from surgery.adapter.apply import apply_plan
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.paths.path_state import MULTIMODAL, TEXT
from surgery.paths.switching import multimodal_path, text_path

CONTEXT = {TEXT: text_path, MULTIMODAL: multimodal_path}
MIXED = (TEXT, MULTIMODAL, MULTIMODAL, TEXT)
GENERATION = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "sampling": {"do_sample": True, "temperature": 1.5},
    "static cache": {"cache_implementation": "static"},
}


@pytest.fixture
def base() -> Any:
    return tiny_model()


@pytest.fixture
def model() -> Any:
    return applied()


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor, path: str | None = None, **given: Any) -> torch.Tensor:
    with CONTEXT[path](model) if path else nullcontext():
        return computed(model, input_ids=ids, **given)


def both(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    found = {path: logits(model, ids, path) for path in CONTEXT}
    assert (found[TEXT] - found[MULTIMODAL]).abs().max() > 0.01
    return found


def code_of(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(SurgeryError) as caught:
        call(*args, **kwargs)
    return caught.value.diagnostics[0].code


# --- by context -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_text_path_is_the_base_bit_for_bit(family: str) -> None:
    model, ids = applied(family=family), tokens()
    assert torch.equal(logits(model, ids, TEXT), logits(tiny_model(family), ids))
    assert not torch.equal(logits(model, ids), logits(tiny_model(family), ids))


@pytest.mark.parametrize(
    ("how", "dtype"), [*((how, torch.float32) for how in GENERATION), ("greedy", torch.bfloat16)]
)
def test_text_path_generates_as_the_base(how: str, dtype: torch.dtype) -> None:
    model, base, ids = applied(dtype=dtype), tiny_model(dtype=dtype), tokens(rows=3)
    arguments = {"max_new_tokens": 5, **GENERATION[how]}
    torch.manual_seed(5)
    expected = base.generate(ids, **arguments)
    torch.manual_seed(5)
    with text_path(model):
        assert torch.equal(model.generate(ids, **arguments), expected)
    torch.manual_seed(5)
    assert not torch.equal(model.generate(ids, **arguments), expected)


def test_paths_nest_and_end_with_their_blocks(model: Any) -> None:
    ids = tokens()
    expected = both(model, ids)
    with text_path(model):
        with multimodal_path(model):
            assert torch.equal(logits(model, ids), expected[MULTIMODAL])
            with text_path(model):
                assert torch.equal(logits(model, ids), expected[TEXT])
        assert torch.equal(logits(model, ids), expected[TEXT])
    assert torch.equal(logits(model, ids), expected[MULTIMODAL])


def test_path_ends_when_its_block_raises(model: Any) -> None:
    ids = tokens()
    expected = both(model, ids)
    with pytest.raises(ZeroDivisionError), text_path(model):
        raise ZeroDivisionError
    assert torch.equal(logits(model, ids), expected[MULTIMODAL])


def test_path_is_of_one_model_only(model: Any) -> None:
    other, ids = applied(seed=3), tokens()
    expected = both(other, ids)
    with text_path(model):
        assert torch.equal(logits(other, ids), expected[MULTIMODAL])


def test_path_reaches_a_model_inside_a_wrapper(model: Any, base: Any) -> None:
    ids, wrapper = tokens(), torch.nn.ModuleList([model])
    with text_path(wrapper):
        assert torch.equal(logits(model, ids), logits(base, ids))


def test_each_thread_has_its_own_path(model: Any) -> None:
    ids = tokens()
    expected = both(model, ids)
    wrong: list[str] = []
    start = threading.Barrier(2)

    def run(path: str) -> None:
        start.wait()
        for _ in range(60):
            if not torch.allclose(logits(model, ids, path), expected[path], atol=1e-5):
                wrong.append(path)

    threads = [threading.Thread(target=run, args=(path,)) for path in CONTEXT]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_each_task_has_its_own_path(model: Any) -> None:
    ids = tokens()
    expected = both(model, ids)

    async def run(path: str) -> bool:
        right = True
        with CONTEXT[path](model):
            for _ in range(10):
                await asyncio.sleep(0)
                right &= torch.equal(logits(model, ids), expected[path])
        return right

    async def run_all() -> list[bool]:
        return await asyncio.gather(*(run(path) for path in MIXED))

    assert asyncio.run(run_all()) == [True] * len(MIXED)


# --- what PEFT, copy, pickle, autocast and compile do ---------------------------------------------


def test_disable_adapter_works_on_top_of_a_path(model: Any, base: Any) -> None:
    ids = tokens()
    with multimodal_path(model), model.disable_adapter():
        assert torch.equal(logits(model, ids), logits(base, ids))
    assert not torch.equal(logits(model, ids), logits(base, ids))


def test_disable_adapter_in_one_thread_leaves_the_others_alone(model: Any) -> None:
    ids = tokens()
    expected = both(model, ids)
    inside, done = threading.Event(), threading.Event()

    def disable() -> None:
        with model.disable_adapter():
            inside.set()
            done.wait()

    thread = threading.Thread(target=disable)
    thread.start()
    inside.wait()
    found = logits(model, ids)
    done.set()
    thread.join()
    torch.testing.assert_close(found, expected[MULTIMODAL])


@pytest.mark.parametrize("with_context", [True, False])
def test_a_thread_started_inside_takes_the_path_along_with_its_context(
    model: Any, with_context: bool
) -> None:
    ids, found = tokens(), []
    expected = both(model, ids)
    with text_path(model):
        run = contextvars.copy_context().run if with_context else lambda f: f()
        thread = threading.Thread(target=run, args=(lambda: found.append(logits(model, ids)),))
        thread.start()
        thread.join()
    torch.testing.assert_close(found[0], expected[TEXT if with_context else MULTIMODAL])


def test_disable_adapter_leaves_frozen_what_the_plan_freezes() -> None:
    model = applied("genieblue_skip", "train=[copies]")
    trains = [name for name, p in model.named_parameters() if p.requires_grad]
    with model.disable_adapter():
        pass
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trains
    assert not any("lora_" in name for name in trains)


def test_deepcopy_has_paths_of_its_own(model: Any) -> None:
    ids = tokens()
    expected = both(model, ids)
    twin = copy.deepcopy(model)
    with text_path(twin):
        assert torch.equal(logits(twin, ids), expected[TEXT])
        assert torch.equal(logits(model, ids), expected[MULTIMODAL])
    with text_path(model):
        assert torch.equal(logits(twin, ids), expected[MULTIMODAL])


def test_pickled_model_keeps_both_paths(model: Any) -> None:
    ids, stream = tokens(), io.BytesIO()
    expected = both(model, ids)
    torch.save(model, stream)
    stream.seek(0)
    restored = torch.load(stream, weights_only=False)
    assert both(restored, ids).keys() == expected.keys()
    for path in CONTEXT:
        assert torch.equal(logits(restored, ids, path), expected[path])


def test_text_path_is_the_base_under_autocast(model: Any, base: Any) -> None:
    ids = tokens()
    with torch.autocast("cpu", torch.bfloat16):
        expected, found = logits(base, ids), both(model, ids)
    assert expected.dtype == torch.bfloat16
    assert torch.equal(found[TEXT], expected)


def test_compiled_model_follows_the_path() -> None:
    """With graph breaks: Dynamo can't read the `ContextVar` that holds the path."""
    model, ids = (
        applied("genieblue_skip", "operations.copies.blocks=[1]", num_hidden_layers=2),
        tokens(),
    )
    expected = both(model, ids)
    compiled = torch.compile(model, backend="eager")
    for path in (MULTIMODAL, TEXT, MULTIMODAL, TEXT):
        with CONTEXT[path](model), torch.no_grad():
            assert torch.allclose(compiled(ids).logits, expected[path], atol=1e-5)


# --- caches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("as_tuple", [False, True])
def test_cache_of_other_path_is_refused(family: str, as_tuple: bool) -> None:
    model, ids = applied(family=family), tokens()
    with text_path(model), torch.no_grad():
        output = model(ids, use_cache=True, return_dict=not as_tuple)
        cache = output[1] if as_tuple else output.past_key_values
        model(ids[:, :1], past_key_values=cache)
    assert code_of(model, ids[:, :1], past_key_values=cache) == "A408"


def test_cache_of_the_callers_remembers_its_path(model: Any) -> None:
    ids, cache = tokens(), DynamicCache()
    with torch.no_grad():
        model(ids, past_key_values=cache, use_cache=True)
    assert cache.get_seq_length() == ids.shape[1]
    with text_path(model):
        assert code_of(model, ids[:, :1], past_key_values=cache) == "A408"
        assert code_of(model, ids[:, :1], past_key_values=copy.deepcopy(cache)) == "A408"


def test_emptied_cache_may_take_another_path(model: Any, base: Any) -> None:
    ids, cache = tokens(), StaticCache(base.config, max_cache_len=16)
    logits(model, ids, MULTIMODAL, past_key_values=cache, use_cache=True)
    cache.reset()
    assert torch.equal(logits(model, ids, TEXT, past_key_values=cache), logits(base, ids))


def test_generate_refuses_a_cache_of_the_other_path(model: Any) -> None:
    ids = tokens()
    with text_path(model), torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
    longer = torch.cat([ids, tokens(length=2, seed=1)], dim=1)
    assert code_of(model.generate, longer, past_key_values=cache, max_new_tokens=2) == "A408"


def test_generate_goes_on_with_a_cache_of_its_path(model: Any, base: Any) -> None:
    ids = tokens()
    longer = torch.cat([ids, tokens(length=2, seed=1)], dim=1)
    with text_path(model), torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
        found = model.generate(longer, past_key_values=cache, max_new_tokens=4)
    assert torch.equal(found, base.generate(longer, max_new_tokens=4))


# --- by row ---------------------------------------------------------------------------------------


def by_row(model: Any, ids: torch.Tensor, paths: Any = MIXED, **given: Any) -> torch.Tensor:
    """What `paths` must give: each row alone, on its path."""
    found = [logits(model, ids[i : i + 1], path, **given) for i, path in enumerate(paths)]
    return torch.cat(found)


@pytest.mark.parametrize("paths", [MIXED, (TEXT,) * 4, (MULTIMODAL, TEXT, TEXT, TEXT)])
def test_rows_take_their_own_paths(model: Any, paths: Any) -> None:
    ids = tokens(4)
    output = model(ids, paths=paths, output_hidden_states=True)
    assert torch.allclose(output.logits, by_row(model, ids, paths), atol=1e-5)
    with text_path(model):
        text = model(ids, output_hidden_states=True).hidden_states
    assert len(output.hidden_states) == len(text)
    for row, path in enumerate(paths):
        alike = torch.allclose(output.hidden_states[-1][row], text[-1][row], atol=1e-5)
        assert alike == (path == TEXT)


def test_rows_take_embeddings_and_masks(model: Any) -> None:
    ids = tokens(4)
    embedded = model.get_input_embeddings()(ids)
    mask = torch.ones_like(ids)
    mask[1, :3] = mask[3, :2] = 0
    found = model(inputs_embeds=embedded, attention_mask=mask, paths=MIXED).logits
    for i, path in enumerate(MIXED):
        with CONTEXT[path](model):
            alone = model(ids[i : i + 1], attention_mask=mask[i : i + 1]).logits
        assert torch.allclose(found[i, 3:], alone[0, 3:], atol=1e-5)


@pytest.mark.parametrize("length", [4, 7])
def test_rows_do_not_split_what_has_no_rows(model: Any, length: int) -> None:
    """Four rows of four tokens: a vector of four is not a row's."""
    ids = tokens(4, length)
    cached = torch.tensor([0, 1, 2, 3])
    found = model(ids, paths=MIXED, logits_to_keep=cached, position_ids=torch.arange(length)[None])
    assert torch.allclose(found.logits, by_row(model, ids)[:, cached], atol=1e-5)


def test_rows_go_on_with_their_caches(model: Any) -> None:
    ids, more = tokens(4), tokens(4, 2, seed=1)
    first = model(ids, paths=MIXED, use_cache=True)
    assert first.past_key_values.get_seq_length() == ids.shape[1]
    second = model(more, paths=MIXED, past_key_values=first.past_key_values)
    expected = by_row(model, torch.cat([ids, more], dim=1))[:, -2:]
    assert torch.allclose(second.logits, expected, atol=1e-5)


def test_rows_with_other_paths_than_their_caches_are_refused(model: Any) -> None:
    ids = tokens(4)
    caches = model(ids, paths=MIXED, use_cache=True).past_key_values
    swapped = (MULTIMODAL, TEXT, TEXT, MULTIMODAL)
    assert code_of(model, ids[:, :1], paths=swapped, past_key_values=caches) == "A407"
    assert code_of(model, ids[:, :1], past_key_values=caches) == "A408"


@pytest.mark.parametrize("items", [None, 50, torch.tensor(50)])
def test_rows_weigh_the_loss_by_their_labels(model: Any, items: Any) -> None:
    ids = tokens(4)
    labels = ids.clone()
    labels[1, :5] = -100
    labels[2] = -100
    counts = {} if items is None else {"num_items_in_batch": items}
    chances = by_row(model, ids)[:, :-1].log_softmax(-1)
    wanted = labels[:, 1:]
    picked = -chances.gather(-1, wanted.clamp(min=0)[..., None])[..., 0][wanted != -100]
    expected = picked.sum() / (len(picked) if items is None else 50)
    found = model(ids, labels=labels, paths=MIXED, **counts).loss
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_rows_without_labels_on_one_path_add_no_loss(model: Any) -> None:
    ids = tokens(4)
    labels = ids.clone()
    labels[[0, 3]] = -100
    found = model(ids, labels=labels, paths=MIXED).loss
    assert found.item() == pytest.approx(model(ids[1:3], labels=ids[1:3]).loss.item(), rel=1e-5)
    assert model(ids, labels=torch.full_like(ids, -100), paths=MIXED).loss.isnan()


def test_rows_generate_on_their_paths_when_padded_left(model: Any) -> None:
    ids = tokens(4)
    mask = torch.ones_like(ids)
    for row, padding in enumerate((0, 3, 1, 2)):
        mask[row, :padding] = ids[row, :padding] = 0
    ends = list(range(3, 50))
    how = {"max_new_tokens": 12, "eos_token_id": ends, "pad_token_id": 0}
    found = model.generate(ids, attention_mask=mask, paths=MIXED, **how)
    lengths = set()
    for row, path in enumerate(MIXED):
        part = slice(row, row + 1)
        with CONTEXT[path](model):
            alone = model.generate(ids[part], attention_mask=mask[part], **how)[0]
        lengths.add(len(alone))
        assert torch.equal(found[row, : len(alone)], alone)
        assert not found[row, len(alone) :].any()
    assert len(lengths) > 1
    assert found.shape[1] == max(lengths)


def test_rows_return_several_sequences_each(model: Any) -> None:
    ids = tokens(4)
    how = {"max_new_tokens": 5, "num_beams": 3, "num_return_sequences": 2}
    found = model.generate(ids, paths=MIXED, **how)
    assert found.shape[0] == 8
    for row, path in enumerate(MIXED):
        with CONTEXT[path](model):
            assert torch.equal(
                found[2 * row : 2 * row + 2], model.generate(ids[row : row + 1], **how)
            )


BAD_ROWS = {
    "too few": {"paths": (TEXT,)},
    "no such path": {"paths": ("vision", TEXT)},
    "one word": {"paths": TEXT},
    "no tokens": {"paths": (TEXT, TEXT), "input_ids": None, "attention_mask": torch.ones(2, 3)},
    "no rows": {"paths": (), "input_ids": torch.zeros(0, 3, dtype=torch.long)},
    "a tuple out": {"paths": (TEXT, TEXT), "return_dict": False},
}


@pytest.mark.parametrize("case", BAD_ROWS)
def test_forward_refuses_paths_that_do_not_fit(model: Any, case: str) -> None:
    given = {"input_ids": tokens(), **BAD_ROWS[case]}
    given = {name: value for name, value in given.items() if value is not None}
    assert code_of(model, **given) == "A407"


def test_forward_refuses_a_plain_cache_with_paths(model: Any) -> None:
    cache = model(tokens(), use_cache=True).past_key_values
    assert code_of(model, tokens(), paths=(TEXT, TEXT), past_key_values=cache) == "A407"


def test_forward_refuses_positional_arguments_with_paths(model: Any) -> None:
    assert code_of(model, tokens(), torch.ones(2, 7), paths=(TEXT, TEXT)) == "A407"


@pytest.mark.parametrize("word", ["return_dict_in_generate", "streamer", "past_key_values"])
def test_generate_refuses_what_rows_cannot_give_back(model: Any, word: str) -> None:
    assert code_of(model.generate, tokens(), paths=(TEXT, MULTIMODAL), **{word: True}) == "A407"


# --- what has no paths ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", [text_path, multimodal_path])
def test_model_without_paths_is_refused(base: Any, path: Any) -> None:
    assert code_of(path(base).__enter__) == "A405"
    in_place = apply_plan(planned(base, "full_finetune"), base)
    assert code_of(path(in_place).__enter__) == "A405"


def test_text_path_is_refused_when_lora_is_merged(model: Any, base: Any) -> None:
    model.merge_adapter()
    assert code_of(text_path(model).__enter__) == "A406"
    with multimodal_path(model):
        assert logits(model, tokens()).isfinite().all()


# --- training -------------------------------------------------------------------------------------


def gradients(model: Any, paths: Any, reentrant: bool | None) -> dict[str, torch.Tensor]:
    """Gradients of one step; `reentrant` is None for a step without checkpointing."""
    model.train()
    if reentrant is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.enable_input_require_grads()
    ids = tokens(4)
    by_path = {} if paths is None else {"paths": paths}
    model(input_ids=ids, labels=ids, use_cache=False, **by_path).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("paths", [None, MIXED])
@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_checkpointing_gives_the_same_gradients(family: str, paths: Any, reentrant: bool) -> None:
    expected = gradients(applied(family=family), paths, None)
    found = gradients(applied(family=family), paths, reentrant)
    trained = {name for name, p in applied(family=family).named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys() == trained
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, atol=1e-6), name


def test_checkpointing_follows_a_second_adapter_on_the_same_base() -> None:
    expected = gradients(applied("lora", "rank=4"), MIXED, None)
    first = applied("lora")
    gradients(first, MIXED, reentrant=True)
    base = first.unload()
    base.load_state_dict(tiny_model().state_dict())
    second = perturbed(apply_plan(planned(base, "lora", "rank=4"), base))
    found = gradients(second, MIXED, None)  # still checkpointed, by the functions of before
    assert any(getattr(module, "gradient_checkpointing", False) for module in base.modules())
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in found)


@pytest.mark.parametrize("reentrant", [False, True])
def test_text_path_backward_runs_on_the_text_path_after_its_block(
    model: Any, base: Any, reentrant: bool
) -> None:
    embedded = model.get_input_embeddings()(tokens()).detach()
    inputs = [embedded.clone().requires_grad_(), embedded.clone().requires_grad_()]
    base(inputs_embeds=inputs[0]).logits.square().sum().backward()
    model.train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    with text_path(model):
        output = model(inputs_embeds=inputs[1], use_cache=False).logits
    output.square().sum().backward()
    assert torch.allclose(inputs[0].grad, inputs[1].grad, atol=1e-6)


def test_training_step_leaves_the_text_path_alone(model: Any, base: Any) -> None:
    ids = tokens()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01, weight_decay=0.1)
    before = logits(model, ids)
    model.train()
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    model.eval()
    assert torch.equal(logits(model, ids, TEXT), logits(base, ids))
    assert not torch.allclose(logits(model, ids), before, atol=1e-3)


def test_second_adapter_on_a_base_ignores_the_first_one_s_hooks(model: Any) -> None:
    """After `unload`, the base must not remember the paths of the adapter that left it."""
    base = model.unload()
    again = apply_plan(planned(base), base)
    with text_path(again):
        made = again.generate(input_ids=tokens(1, 4), max_new_tokens=3, do_sample=False)
    assert made.shape[0] == 1
