"""Visual experts: who is routed where, along caches, packing, threads, disks and errors."""

import copy
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny import applied, computed, is_rounding, planned, save_tiny, tiny_model, tokens
from transformers import DynamicCache, GenerationConfig

from surgery import fix_path, load_adapter, load_expert_weights, multimodal_path, text_path
from surgery.adapter.apply import apply_plan
from surgery.adapter.folder import save_adapter, write_adapter
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.layers import routing
from surgery.layers.expert import ExpertMatrix
from surgery.plan.planner import plan_recipe
from surgery.recipe.loading import load_recipe
from surgery.verification.runner import verify_adapter

IMAGE = 3
RUNS = "operations.experts.runs=[[1,5]]"


def experts(*options: str, recipe: str = "cogvlm_skip", **how: Any) -> Any:
    """A shaken model with experts in block 3 of 4, LoRA in the others."""
    return applied(recipe, *(f"operations.experts.{option}" for option in options), **how)


def prompt(rows: int = 2, length: int = 9) -> torch.Tensor:
    """Ids with an image at 1 to 4 and no other image token."""
    ids = tokens(rows, length).clamp(min=IMAGE + 1)
    ids[:, 1:5] = IMAGE
    return ids


def logits(model: Any, ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
    return computed(model, input_ids=ids, **{"use_cache": False, **inputs})


def is_close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    return bool((found - wanted).abs().max() <= 2e-6 * wanted.abs().max())


def code_of(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(SurgeryError) as caught:
        call(*args, **kwargs)
    return caught.value.diagnostics[0].code


@contextmanager
def counted(model: Any) -> Iterator[dict[str, int]]:
    """Tokens that each expert is given."""
    seen: dict[str, int] = {}

    def note(name: str) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            seen[name] = seen.get(name, 0) + args[0].numel() // args[0].shape[-1]

        return hook

    named = [(n, m) for n, m in model.named_modules() if isinstance(m, ExpertMatrix)]
    handles = [m.expert["default"].register_forward_hook(note(n)) for n, m in named]
    yield seen
    for handle in handles:
        handle.remove()


@pytest.fixture(scope="module")
def model() -> Any:
    return experts(f"image_token_id={IMAGE}")


# --- who is an image token ------------------------------------------------------------------------


def test_ids_masks_and_types_say_the_same(model: Any) -> None:
    ids, silent = prompt(), experts()
    wanted = logits(model, ids)
    mask = ids == IMAGE
    assert torch.equal(logits(silent, ids, image_mask=mask), wanted)
    assert torch.equal(logits(silent, ids, token_type_ids=mask.long()), wanted)
    assert not is_close(logits(model, ids, image_mask=torch.zeros_like(mask)), wanted)


def test_embeddings_are_routed_by_the_mask(model: Any) -> None:
    ids = prompt()
    embedded = model.get_input_embeddings()(ids)
    found = computed(model, inputs_embeds=embedded, image_mask=ids == IMAGE, use_cache=False)
    assert torch.equal(found, logits(model, ids))
    assert code_of(model, inputs_embeds=embedded) == "A410"


def test_ids_of_a_model_around_the_decoder_are_enough(model: Any) -> None:
    ids, base = prompt(), model.get_base_model()
    wanted = logits(model, ids)
    hook = base.model.register_forward_pre_hook(
        lambda m, args, kwargs: (
            (),
            {
                **kwargs,
                "input_ids": None,
                "inputs_embeds": base.get_input_embeddings()(kwargs["input_ids"]),
            },
        ),
        with_kwargs=True,
        prepend=True,
    )
    try:
        assert torch.equal(logits(model, ids), wanted)
    finally:
        hook.remove()


@pytest.mark.parametrize(("boundary", "count"), [("plain", 4), ("cogvlm", 3)])
@pytest.mark.parametrize("form", ["gather", "segments"])
def test_only_image_tokens_reach_the_experts(form: str, boundary: str, count: int) -> None:
    model = experts(f"image_token_id={IMAGE}", f"form={form}", f"boundary={boundary}")
    with counted(model) as seen:
        logits(model, prompt(1))
    assert len(seen) == 7
    assert set(seen.values()) == {count}


@pytest.mark.parametrize("words", [["q", "k", "v"], ["mlp"], ["o", "gate", "down"], ["attention"]])
def test_modules_choose_the_matrices(words: list[str]) -> None:
    model = experts(f"image_token_id={IMAGE}", f"modules=[{','.join(words)}]")
    roles = {"attention": {"q", "k", "v", "o"}, "mlp": {"gate", "up", "down"}}
    wanted = set().union(*(roles.get(word, {word}) for word in words))
    with counted(model) as seen:
        logits(model, prompt())
    assert {name.rpartition(".")[2].removesuffix("_proj") for name in seen} == wanted


@pytest.mark.parametrize(("family", "wanted"), [("phi3", 4), ("gpt2", 4), ("gemma3_text", 7)])
def test_other_layouts_are_routed(family: str, wanted: int) -> None:
    found = {}
    for form in ("gather", "blend", "segments"):
        model = experts(f"image_token_id={IMAGE}", f"form={form}", family=family)
        found[form] = logits(model, prompt())
    assert is_close(found["blend"], found["gather"])
    assert is_close(found["segments"], found["gather"])
    with counted(model) as seen:
        logits(model, prompt())
    assert len(seen) == wanted


def test_biases_are_copied_where_the_base_has_them() -> None:
    names = [n for n, _ in experts().named_parameters() if ".expert." in n]
    assert {n.split(".")[-4] for n in names if n.endswith("bias")} == {"q_proj", "k_proj", "v_proj"}


def test_lora_stays_on_for_text_in_other_blocks(model: Any) -> None:
    ids = prompt()
    with text_path(model):
        text = logits(model, ids)
    assert not torch.equal(logits(model, ids, image_mask=torch.zeros_like(ids)), text)


def test_text_path_is_the_base_to_the_bit(model: Any) -> None:
    base, ids = tiny_model(), prompt()
    with text_path(model):
        assert torch.equal(logits(model, ids), logits(base, ids))
        assert torch.equal(logits(model, ids, image_mask=ids == IMAGE), logits(base, ids))
    with model.disable_adapter():
        assert torch.equal(logits(model, ids), logits(base, ids))


def test_index_is_made_once_a_forward(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    route = routing._route
    monkeypatch.setattr(routing, "_route", lambda *a: calls.append(1) or route(*a))
    logits(experts(f"image_token_id={IMAGE}", recipe="cogvlm_full"), prompt())
    assert len(calls) == 1


# --- padding, packing, caches ---------------------------------------------------------------------


@pytest.mark.parametrize("positions", ["plain", "cogvlm"])
@pytest.mark.parametrize("form", ["gather", "blend"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side: str, form: str, positions: str) -> None:
    model = experts(f"image_token_id={IMAGE}", f"form={form}", f"positions={positions}")
    ids, pad = prompt(1), torch.zeros(1, 3, dtype=torch.long)
    parts, ones = (pad, ids) if side == "left" else (ids, pad), torch.ones_like(ids)
    padded = torch.cat(parts, dim=1)
    mask = torch.cat((pad, ones) if side == "left" else (ones, pad), dim=1)
    other = torch.cat([tokens(1, 3, seed=5), prompt(1)], dim=1)
    batch = torch.cat([padded, other]), torch.cat([mask, torch.ones_like(mask)])
    place = (mask.cumsum(1) - 1).clamp(min=0)
    position = torch.cat([place, torch.arange(12)[None]])
    found = logits(model, batch[0], attention_mask=batch[1], position_ids=position)
    assert is_close(found[0][mask[0].bool()], logits(model, ids)[0])


def test_several_images_in_a_row_are_routed() -> None:
    model, ids = experts(f"image_token_id={IMAGE}", "boundary=cogvlm"), prompt(1, 12)
    ids[:, 6:9] = IMAGE
    with counted(model) as seen:
        logits(model, ids)
    assert set(seen.values()) == {3 + 2}


@pytest.mark.parametrize("positions", ["plain", "cogvlm"])
@pytest.mark.parametrize("boundary", ["plain", "cogvlm"])
def test_packed_samples_are_as_alone(boundary: str, positions: str) -> None:
    options = (f"image_token_id={IMAGE}", f"boundary={boundary}", f"positions={positions}")
    model, first, second = experts(*options), prompt(1, 5), prompt(1, 8)
    second[:, 0] = IMAGE
    packed = torch.cat([first, second], dim=1)
    place = torch.cat([torch.arange(5), torch.arange(8)])[None]
    found = logits(model, packed, position_ids=place)
    assert is_close(found[:, :5], logits(model, first))
    assert is_close(found[:, 5:], logits(model, second))


@pytest.mark.parametrize("positions", ["plain", "cogvlm"])
@pytest.mark.parametrize("own_cache", [False, True])
def test_cache_goes_on_where_the_image_ended(own_cache: bool, positions: str) -> None:
    model = experts(f"image_token_id={IMAGE}", f"positions={positions}")
    ids = prompt(2, 12)
    wanted = logits(model, ids)
    cache = DynamicCache() if own_cache else None
    with torch.no_grad(), counted(model) as seen:
        output = model(input_ids=ids[:, :7], past_key_values=cache, use_cache=True)
        for place in range(7, 12):
            step = ids[:, place : place + 1]
            output = model(input_ids=step, past_key_values=output.past_key_values)
            assert is_close(output.logits[:, 0], wanted[:, place])
    assert set(seen.values()) == {8}


@pytest.mark.parametrize("positions", ["plain", "cogvlm"])
def test_generate_is_the_same_without_a_cache(positions: str) -> None:
    model = experts(f"positions={positions}")
    ids, pads = prompt(2, 8), torch.ones(2, 8, dtype=torch.long)
    ids[0, 0], pads[0, 0] = 0, 0
    found = [
        model.generate(
            input_ids=ids,
            attention_mask=pads,
            image_mask=ids == IMAGE,
            generation_config=GenerationConfig(
                max_new_tokens=6, do_sample=False, pad_token_id=0, use_cache=cached
            ),
        )
        for cached in (True, False)
    ]
    assert torch.equal(*found)


def test_beams_repeat_the_mask(model: Any) -> None:
    ids = prompt(2, 7)
    config = GenerationConfig(max_new_tokens=3, num_beams=3, do_sample=False, pad_token_id=0)
    wanted = model.generate(input_ids=ids, generation_config=config)
    found = experts().generate(input_ids=ids, image_mask=ids == IMAGE, generation_config=config)
    assert torch.equal(found, wanted)


def test_mask_along_a_cache_may_be_of_all_tokens() -> None:
    model, ids = experts(), prompt(2, 9)
    mask = ids == IMAGE
    wanted = logits(model, ids, image_mask=mask)
    with torch.no_grad():
        for second in (mask, mask[:, 3:]):
            part = model(input_ids=ids[:, :3], image_mask=mask[:, :3], use_cache=True)
            cache = part.past_key_values
            rest = model(input_ids=ids[:, 3:], image_mask=second, past_key_values=cache)
            assert is_close(rest.logits, wanted[:, 3:])


# --- training, compiling, types -------------------------------------------------------------------


@pytest.mark.parametrize("form", ["gather", "blend", "segments"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_gradients_are_the_same(reentrant: bool, form: str) -> None:
    gradients = []
    for checkpointed in (False, True):
        model, ids = experts(f"image_token_id={IMAGE}", f"form={form}"), prompt()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model.train()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    plain, again = gradients
    assert any(".expert." in name for name in plain)
    for name, gradient in plain.items():
        assert gradient.any(), name
        assert is_close(again[name], gradient), name


@pytest.mark.parametrize(("form", "use_cache"), [("segments", True), ("blend", False)])
def test_static_forms_compile_without_a_break(form: str, use_cache: bool) -> None:
    torch.compiler.reset()
    options = [f"form={form}", f"image_token_id={IMAGE}", "boundary=cogvlm"]
    model = experts(*options, *(["runs=[[1,5]]"] if form == "segments" else []))
    ids = prompt()
    wanted = logits(model, ids)
    fix_path(model, "multimodal")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert is_close(logits(compiled, ids, use_cache=use_cache), wanted)
    assert code_of(text_path(model).__enter__) == "A417"
    fix_path(model, None)
    with text_path(model):
        assert torch.equal(logits(model, ids), logits(tiny_model(), ids))


@pytest.mark.slow
def test_compiled_forward_and_backward_has_the_gradients() -> None:
    torch.compiler.reset()
    model, ids = experts("form=segments", "runs=[[1,5]]"), prompt()
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    trained = [p for p in model.parameters() if p.requires_grad]
    wanted = torch.autograd.grad(model(input_ids=ids, labels=ids, use_cache=False).loss, trained)
    fix_path(model, "multimodal")
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    loss = compiled(input_ids=ids, labels=ids, use_cache=False).loss
    found = torch.autograd.grad(loss, trained)
    assert all(is_close(a, b) for a, b in zip(found, wanted, strict=True)), names


@pytest.mark.slow
def test_gather_compiles_with_breaks(model: Any) -> None:
    torch.compiler.reset()
    ids = prompt()
    compiled = torch.compile(model, backend="eager")
    assert is_close(logits(compiled, ids), logits(model, ids))
    with text_path(model):
        assert is_close(logits(compiled, ids), logits(tiny_model(), ids))
    torch.compiler.reset()


@pytest.mark.parametrize("form", ["gather", "blend", "segments"])
def test_autocast_runs_in_bfloat16(form: str) -> None:
    model, ids = experts(f"image_token_id={IMAGE}", f"form={form}"), prompt()
    wanted = logits(model, ids)
    with torch.autocast("cpu", torch.bfloat16):
        found = logits(model, ids)
    assert found.dtype == torch.bfloat16
    assert (found.float() - wanted).abs().max() < 0.05 * wanted.abs().max()


# --- two models, threads, copies, rows ------------------------------------------------------------


def test_failed_call_leaves_nothing_behind(model: Any) -> None:
    ids, attention = prompt(), model.get_base_model().model.layers[1]

    def fail(*args: Any) -> None:
        raise RuntimeError("on purpose")

    handle = attention.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="on purpose"):
        logits(model, ids)
    handle.remove()
    expert = model.get_base_model().model.layers[3].self_attn.q_proj
    assert routing.routing_of(expert._switch) is None


def test_two_models_at_once_are_separate(model: Any) -> None:
    other, ids = experts(f"image_token_id={IMAGE + 1}"), prompt()
    wanted, alone = logits(model, ids), logits(other, ids)
    inside = []
    block = model.get_base_model().model.layers[1]
    handle = block.register_forward_hook(lambda *a: inside.append(logits(other, ids)) or None)
    found = logits(model, ids)
    handle.remove()
    assert torch.equal(found, wanted)
    assert torch.equal(inside[0], alone)


def test_threads_have_masks_of_their_own() -> None:
    model, ids = experts(), prompt()
    masks = [(ids == IMAGE).roll(i, dims=1) for i in range(4)]
    wanted = [logits(model, ids, image_mask=mask) for mask in masks]
    found: dict[int, bool] = {}

    def work(i: int) -> None:
        same = (torch.equal(logits(model, ids, image_mask=masks[i]), wanted[i]) for _ in range(5))
        found[i] = all(same)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(4), True)


def test_copies_and_pickles_are_routed_alone(model: Any) -> None:
    ids, stream = prompt(), io.BytesIO()
    wanted = logits(model, ids)
    torch.save(model, stream)
    stream.seek(0)
    twins = copy.deepcopy(model), torch.load(stream, weights_only=False)
    for twin in twins:
        with torch.no_grad():
            for name, parameter in twin.named_parameters():
                if ".expert." in name:
                    parameter.zero_()
        assert not is_close(logits(twin, ids), wanted)
    assert torch.equal(logits(model, ids), wanted)


@pytest.mark.parametrize("paths", [["text", "multimodal"], ["multimodal", "text"]])
def test_rows_take_their_part_of_the_mask(paths: list[Any]) -> None:
    model, ids = experts(), prompt()
    mask = ids == IMAGE
    mask[1] = mask[1].roll(2)
    found = logits(model, ids, image_mask=mask, paths=paths)
    for row, path in enumerate(paths):
        with text_path(model) if path == "text" else multimodal_path(model):
            alone = logits(model, ids[[row]], image_mask=mask[[row]])
        assert torch.equal(found[row], alone[0])
    made = model.generate(input_ids=ids, image_mask=mask, paths=paths, max_new_tokens=2)
    assert made.shape[0] == 2


# --- disk -----------------------------------------------------------------------------------------


def test_disk_to_disk_is_in_memory(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    plan = plan_recipe(load_recipe("cogvlm_skip", [f"model={base}"]), weights=True)
    write_adapter(plan, tmp_path / "disk")
    save_adapter(plan, apply_plan(plan, tiny_model()), tmp_path / "memory")
    stored, saved = (
        load_file(tmp_path / f / "adapter_model.safetensors") for f in ("disk", "memory")
    )
    assert stored.keys() == saved.keys()
    assert all(torch.equal(stored[name], saved[name]) for name in stored)
    assert all((tmp_path / f / "plan.json").exists() for f in ("disk", "memory"))


def test_saved_adapter_opens_here_and_not_in_plain_peft(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    plan = plan_recipe(load_recipe("cogvlm_skip", [f"model={base}"]), weights=True)
    model = apply_plan(plan, tiny_model())
    with torch.no_grad():
        for _, parameter in model.named_parameters():
            parameter.add_(0.05) if parameter.requires_grad else None
    save_adapter(plan, model, tmp_path / "ours")
    model.save_pretrained(tmp_path / "theirs")
    ids = prompt()
    opened = load_adapter(tmp_path / "ours")
    mask = ids == IMAGE
    assert is_rounding(logits(opened, ids, image_mask=mask), logits(model, ids, image_mask=mask))
    for folder in ("ours", "theirs"):
        config = json.loads((tmp_path / folder / "adapter_config.json").read_text())
        assert config["peft_type"] == "SURGERY_ROUTED"
        with pytest.raises((KeyError, ValueError), match="SURGERY_ROUTED"):
            PeftModel.from_pretrained(tiny_model(), str(tmp_path / folder))


@pytest.mark.parametrize(
    "options", [["form=segments", "blocks=all"], ["boundary=cogvlm", "positions=cogvlm"]]
)
def test_verify_finds_nothing_wrong(options: list[str], tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base")
    given = [f"model={base}", *(f"operations.experts.{option}" for option in options)]
    recipe = "cogvlm_full" if "blocks=all" in options else "cogvlm_skip"
    write_adapter(plan_recipe(load_recipe(recipe, given), weights=True), tmp_path / "mine")
    outcomes = verify_adapter(tmp_path / "mine").outcomes
    assert [(o.check, o.what) for o in outcomes if not o.passed] == []
    message = {o.check: o.what for o in outcomes}
    assert "plain peft refuses" in message["save_reload"]
    assert "experts in" in message["blocks_executed"]


def test_merging_is_refused_and_unloading_gives_the_base(model: Any) -> None:
    twin, ids = copy.deepcopy(model), prompt()
    assert code_of(twin.merge_and_unload) == "A412"
    assert torch.equal(logits(twin.unload(), ids), logits(tiny_model(), ids))


# --- bad input ------------------------------------------------------------------------------------


def test_no_way_to_know_is_refused() -> None:
    assert code_of(experts(), prompt()) == "A410"


@pytest.mark.parametrize("shape", [(2, 8), (1, 9), (3, 9), (18,), (2, 9, 1)])
def test_mask_of_another_shape_is_refused(model: Any, shape: tuple[int, ...]) -> None:
    mask = torch.zeros(shape, dtype=torch.bool)
    assert code_of(model, prompt(), image_mask=mask) == "A411"
    assert code_of(model.generate, prompt(), image_mask=mask) == "A411"


def test_segments_refuse_rows_that_differ() -> None:
    ids = prompt()
    ids[1] = ids[1].roll(1)
    assert code_of(experts(f"image_token_id={IMAGE}", "form=segments"), ids) == "A411"


def test_runs_refuse_another_layout() -> None:
    model = experts(f"image_token_id={IMAGE}", "form=segments", "runs=[[1,5]]")
    assert code_of(model, prompt().roll(1, dims=1)) == "A411"
    assert code_of(model, prompt()[:, :4]) == "A411"


def test_shared_positions_need_a_rotary_embedding() -> None:
    assert code_of(experts, "positions=cogvlm", family="gpt2") == "A418"


@pytest.mark.parametrize(
    ("option", "code"),
    [
        ("image_token_id=128", "P214"),
        ("runs=[[4,2]]", "P213"),
        ("runs=[[1,5],[5,9]]", "P213"),
    ],
)
def test_plan_refuses_what_no_prompt_has(option: str, code: str) -> None:
    assert code_of(planned, tiny_model(), "cogvlm_skip", f"operations.experts.{option}") == code


# --- experts of another checkpoint ----------------------------------------------------------------


def cogvlm_state(model: Any, blocks: Any = range(4)) -> dict[str, torch.Tensor]:
    """A checkpoint with the names of CogVLM's."""
    config = model.config
    wide, narrow = config.hidden_size, config.intermediate_size
    heads = config.hidden_size + 2 * config.num_key_value_heads * 8
    shapes = {
        "self_attn.vision_expert_query_key_value.weight": (heads, wide),
        "self_attn.vision_expert_query_key_value.bias": (heads,),
        "self_attn.vision_expert_dense.weight": (wide, wide),
        "mlp.vision_mlp.gate_proj.weight": (narrow, wide),
        "mlp.vision_mlp.up_proj.weight": (narrow, wide),
        "mlp.vision_mlp.down_proj.weight": (wide, narrow),
        "mlp.language_mlp.up_proj.weight": (1,),
    }
    return {
        f"model.layers.{i}.{name}": torch.randn(s) for i in blocks for name, s in shapes.items()
    }


@pytest.mark.parametrize("as_files", [False, True])
def test_expert_weights_are_copied_and_reported(as_files: bool, tmp_path: Path) -> None:
    model = experts(recipe="cogvlm_full")
    state = cogvlm_state(model)
    save_file(state, tmp_path / "model.safetensors")
    report = load_expert_weights(model, tmp_path if as_files else state)
    assert report.is_complete
    assert len(report.copied) == 4 * 10
    assert len(report.unmatched) == 4
    q, k, v = (
        getattr(model.get_base_model().model.layers[2].self_attn, f"{n}_proj").expert["default"]
        for n in "qkv"
    )
    name = "model.layers.2.self_attn.vision_expert_query_key_value"
    assert torch.equal(torch.cat([q.weight, k.weight, v.weight]), state[f"{name}.weight"])
    assert torch.equal(torch.cat([q.bias, k.bias, v.bias]), state[f"{name}.bias"])


def test_report_says_what_did_not_match() -> None:
    model = experts()
    report = load_expert_weights(model, cogvlm_state(model, range(3)))
    assert not report.is_complete
    assert len(report.no_target) == 3 * 6
    assert len(report.unfilled) == 10
    assert "not filled" in str(report)
    names = {"x.{i}.weight": "q_proj"}
    assert load_expert_weights(model, {}, names).unused == ("x.{i}.weight",)


@pytest.mark.parametrize("chosen", ["all", "skip 1/4"])
def test_report_is_complete_where_every_expert_is_filled(chosen: str) -> None:
    model = experts(f"blocks={chosen}", recipe="cogvlm_full", family="llama")
    state = cogvlm_state(model)
    state = {name: tensor for name, tensor in state.items() if not name.endswith(".bias")}
    report = load_expert_weights(model, state)
    assert report.is_complete
    assert report.unused == ("model.layers.{i}.self_attn.vision_expert_query_key_value.bias",)
    assert len(report.copied) == 7 * (4 if chosen == "all" else 1)
    assert len(report.other_blocks) == (0 if chosen == "all" else 3 * 5)


def test_report_is_not_complete_where_a_bias_is_left_over_or_not_filled() -> None:
    model = experts(recipe="cogvlm_full", family="llama")
    left = load_expert_weights(model, cogvlm_state(model))
    assert not left.is_complete
    assert len(left.no_target) == 4
    state = {n: t for n, t in cogvlm_state(model).items() if not n.endswith(".bias")}
    assert not load_expert_weights(experts(recipe="cogvlm_full"), state).is_complete


def test_report_names_a_handful_of_each_and_counts_the_rest() -> None:
    model = experts(recipe="cogvlm_full")
    state = cogvlm_state(model, [0, 1, 3])
    names = sorted(load_expert_weights(model, state).unfilled)
    message = str(load_expert_weights(model, state))
    assert f"10 not filled: {', '.join(names[:5])} and 5 more" in message
    few = {name: tensor for name, tensor in state.items() if "language_mlp" in name}
    assert f"3 names that no pattern matched: {', '.join(few)}" in message


def test_patterns_of_names_are_no_regular_expressions() -> None:
    model = experts(recipe="cogvlm_full")
    weight = torch.zeros(32, 32)
    state = {"h.0xo.weight": weight, "h+.1.o.weight": weight}
    report = load_expert_weights(model, state, {"h.{i}.o.weight": "o_proj"})
    assert report.unmatched == tuple(state)
    (copied,) = load_expert_weights(model, state, {"h+.{i}.o.weight": "o_proj"}).copied
    assert copied == ("h+.1.o.weight", "1.self_attn.o_proj.weight")


def test_wrong_expert_weights_are_refused_untouched(tmp_path: Path) -> None:
    model = experts(recipe="cogvlm_full")
    before = {n: p.clone() for n, p in model.named_parameters()}
    state = cogvlm_state(model)
    state["model.layers.3.mlp.vision_mlp.up_proj.weight"] = torch.zeros(3, 3)
    assert code_of(load_expert_weights, model, state) == "A419"
    assert code_of(load_expert_weights, tiny_model(), state) == "A419"
    assert code_of(load_expert_weights, model, tmp_path / "none.bin") == "A419"
    assert code_of(load_expert_weights, model, {}, {"no.block": "q_proj"}) == "A419"
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
