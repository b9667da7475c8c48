"""Learners against a slow implementation, and their paths, caches, starts, counts and refusals."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import computed, is_rounding, planned, save_tiny, tiny_config, tiny_model, tokens
from transformers import (
    AttentionInterface,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from surgery.adapter.apply import apply_plan, name_in_memory
from surgery.adapter.folder import load_adapter, load_base, save_adapter, write_adapter
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.layers.learner import BlockLearners
from surgery.paths.switching import text_path
from surgery.plan.planner import Plan, plan_recipe
from surgery.recipe.loading import load_recipe
from surgery.verification.prompts import make_prompts
from surgery.verification.runner import verify_adapter

IMAGE = 5
QUIET = "operations.learners"
FROZEN = ("llm=frozen", "rank=4", f"{QUIET}.image_token_id={IMAGE}")
ROWS = [  # i: image, t: text; of different lengths, so that a batch of them is padded
    "tiiittttit",
    "tttttt",
    "iittt",
]


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def prompt(kinds: str, seed: int = 0) -> torch.Tensor:
    """Ids of a prompt; image tokens differ too, as the features of an image do."""
    return tokens(1, len(kinds), seed)[0].clamp(min=IMAGE + 1)


def images(kinds: str) -> list[bool]:
    return [kind == "i" for kind in kinds]


def batch(rows: list[str] = ROWS) -> dict[str, torch.Tensor]:
    """The prompts, padded on the left with a token that would count if it weren't masked."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), 3)
    mask = torch.zeros_like(ids)
    is_image = torch.zeros_like(ids, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = prompt(row, i)
        mask[i, width - len(row) :] = 1
        is_image[i, width - len(row) :] = torch.tensor(images(row))
    return {"input_ids": ids, "attention_mask": mask, "image_mask": is_image}


def by_token(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same layout, where all image tokens have the id that the recipe names."""
    ids = inputs["input_ids"].masked_fill(inputs["image_mask"], IMAGE)
    return {"input_ids": ids, "attention_mask": inputs["attention_mask"]}


def plain(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As the base takes them."""
    return {name: value for name, value in inputs.items() if name != "image_mask"}


def assert_close(found: torch.Tensor, wanted: torch.Tensor, relative: float = 1e-5) -> None:
    """Equal but for rounding, relative to the largest value."""
    difference = (found - wanted).abs().max() / wanted.abs().max()
    assert difference <= relative, float(difference)


def move(model: Any, scale: float = 0.15) -> Any:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".learner." in name:
                parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def base_model(**how: Any) -> Any:
    """A tiny base whose weights are large enough for attention to choose."""
    return tiny_model(**{"initializer_range": 0.2, **how})


def wings(*overrides: str, perturbed: bool = True, **how: Any) -> tuple[Plan, Any]:
    model = base_model(**how)
    plan = planned(model, "wings", *FROZEN, *overrides)
    model = apply_plan(plan, model)
    return plan, move(model) if perturbed else model


def weights_of(plan: Plan, model: Any) -> dict[str, torch.Tensor]:
    """The base's and the learners' tensors under the names of the plan."""
    parameters = dict(model.named_parameters())
    found = {n: parameters[f"base_model.model.{n}"] for n in plan.anatomy.sizes}
    for edit in plan.edits:
        found |= {t.name: parameters[name_in_memory(edit, t.name)] for t in edit.tensors}
    return {name: tensor.detach() for name, tensor in found.items()}


# --- the slow implementation: one row, one token and one head at a time ---------------------------


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / torch.sqrt((x * x).mean() + 1e-6) * weight


def turn(x: torch.Tensor, position: int) -> torch.Tensor:
    """One head's query or key at a position; dimension i turns with i + half."""
    half = len(x) // 2
    out = x.clone()
    for i in range(half):
        angle = position / 10000 ** (2 * i / len(x))
        c, s = math.cos(angle), math.sin(angle)
        out[i], out[i + half] = x[i] * c - x[i + half] * s, x[i + half] * c + x[i] * s
    return out


class Slow:
    """Qwen2 with Wings, for one prompt without padding."""

    def __init__(self, weights: dict[str, torch.Tensor], columns: int, factor: float) -> None:
        self.w, self.columns, self.factor = weights, columns, factor
        self.heads, self.own_kv, self.width = 4, 2, 8

    def logits(self, ids: list[int], is_image: list[bool]) -> torch.Tensor:
        x = [self.w["model.embed_tokens.weight"][i] for i in ids]
        inputs = list(x)
        for block in range(4):
            x = self.block(f"model.layers.{block}", x, inputs, is_image)
        head = self.w.get("lm_head.weight", self.w["model.embed_tokens.weight"])
        return torch.stack([head @ norm(h, self.w["model.norm.weight"]) for h in x])

    def block(self, path: str, x: Any, inputs: Any, is_image: list[bool]) -> list[torch.Tensor]:
        normed = [norm(h, self.w[f"{path}.input_layernorm.weight"]) for h in x]
        attended, rows = self.attention(f"{path}.self_attn", normed)
        out = []
        for t in range(len(x)):
            h = x[t] + attended[t]
            prefix = f"{path}.self_attn.learner"
            h = h + self.mixture(prefix, t, h, inputs, is_image, rows[t])
            y = norm(h, self.w[f"{path}.post_attention_layernorm.weight"])
            gate, up, down = (self.w[f"{path}.mlp.{n}_proj.weight"] for n in ("gate", "up", "down"))
            out.append(h + down @ (torch.nn.functional.silu(gate @ y) * (up @ y)))
        return out

    def attention(self, path: str, x: Any) -> tuple[list[torch.Tensor], Any]:
        q, k, v = (
            [self.w[f"{path}.{n}_proj.weight"] @ h + self.w[f"{path}.{n}_proj.bias"] for h in x]
            for n in "qkv"
        )
        out, rows = [], []
        for t in range(len(x)):
            context, row = [], [torch.zeros(())] * (t + 1)
            for head in range(self.heads):
                shared = head * self.own_kv // self.heads
                query = turn(self.head(q[t], head), t)
                keys = [turn(self.head(k[s], shared), s) for s in range(t + 1)]
                values = [self.head(v[s], shared) for s in range(t + 1)]
                found, weights = self.softmax(query, keys, values)
                context.append(found)
                row = [a + b for a, b in zip(row, weights, strict=True)]
            out.append(self.w[f"{path}.o_proj.weight"] @ torch.cat(context))
            rows.append(row)
        return out, rows

    def mixture(
        self, path: str, t: int, h: torch.Tensor, inputs: Any, is_image: list[bool], row: Any
    ) -> torch.Tensor:
        text = self.learner(f"{path}.textual", t, h, inputs, [not i for i in is_image])
        if not any(is_image[: t + 1]):
            return text
        image = self.learner(f"{path}.visual", t, h, inputs, is_image)
        padded = [*row, *[torch.zeros(())] * self.columns][: self.columns]
        scores = self.w[f"{path}.router.weight"] @ torch.stack(padded)
        scores = scores + self.w[f"{path}.router.bias"]
        first, second = torch.softmax(scores * torch.sigmoid(scores), dim=0)
        return self.factor * (first * image + second * text)

    def learner(
        self, path: str, t: int, h: torch.Tensor, inputs: Any, seen: list[bool]
    ) -> torch.Tensor:
        chosen = [s for s in range(t + 1) if seen[s]]
        if not chosen:
            return torch.zeros_like(h)
        q = h + self.pair(f"{path}.q", h)
        k = [self.grouped(f"{path}.k", inputs[s]) for s in chosen]
        v = [self.grouped(f"{path}.v", inputs[s]) for s in chosen]
        kv = len(k[0]) // self.width
        context = []
        for head in range(self.heads):
            shared = head * kv // self.heads
            query = turn(self.head(q, head), t)
            keys = [turn(self.head(key, shared), s) for key, s in zip(k, chosen, strict=True)]
            values = [self.head(value, shared) for value in v]
            context.append(self.softmax(query, keys, values)[0])
        return self.pair(f"{path}.o", torch.cat(context))

    def grouped(self, path: str, x: torch.Tensor) -> torch.Tensor:
        """x plus the pair; fewer heads than x has are each the mean of theirs."""
        added = self.pair(path, x)
        kv = len(added) // self.width
        share = self.heads // kv
        means = []
        for group in range(kv):
            heads = [self.head(x, group * share + i) for i in range(share)]
            means.append(sum(heads[1:], heads[0]) / share)
        return torch.cat(means) + added

    def pair(self, path: str, x: torch.Tensor) -> torch.Tensor:
        return self.w[f"{path}.B.weight"] @ (self.w[f"{path}.A.weight"] @ x)

    def head(self, x: torch.Tensor, head: int) -> torch.Tensor:
        return x[head * self.width : (head + 1) * self.width]

    def softmax(self, query: Any, keys: Any, values: Any) -> tuple[torch.Tensor, Any]:
        scores = torch.stack([query @ key for key in keys]) / math.sqrt(self.width)
        weights = torch.softmax(scores, dim=0)
        return sum(w * v for w, v in zip(weights, values, strict=True)), list(weights)


@pytest.mark.parametrize(
    ("overrides", "columns", "factor"),
    [
        ((), 4096, 1.0),
        (("heads=grouped", f"{QUIET}.columns=4"), 4, 1.0),
        ((f"{QUIET}.doubled=true", f"{QUIET}.columns=7"), 7, 2.0),
    ],
)
def test_logits_equal_a_slow_implementation(
    overrides: tuple[str, ...], columns: int, factor: float
) -> None:
    plan, model = wings(*overrides)
    inputs = batch()
    with torch.no_grad():
        found = model(**inputs).logits
    slow = Slow(weights_of(plan, model), columns, factor)
    for i, row in enumerate(ROWS):
        wanted = slow.logits(prompt(row, i).tolist(), images(row))
        assert_close(found[i, -len(row) :], wanted)


def test_doubled_adds_a_lone_textual_learner_once() -> None:
    inputs = batch()
    lone = ROWS[0].index("i")
    _, single = wings()
    _, doubled = wings(f"{QUIET}.doubled=true")
    with torch.no_grad():
        once, twice = (m.eval()(**inputs).logits for m in (single, doubled))
    start = once.shape[1] - len(ROWS[0])
    assert_close(twice[1, -len(ROWS[1]) :], once[1, -len(ROWS[1]) :])
    assert_close(twice[0, start : start + lone], once[0, start : start + lone])
    assert (twice[0, start + lone :] - once[0, start + lone :]).abs().max() > 0.01


def test_eager_and_sdpa_agree() -> None:
    _, model = wings()
    with torch.no_grad():
        sdpa = model(**batch()).logits
        model.set_attn_implementation("eager")
        eager = model(**batch()).logits
    real = batch()["attention_mask"].bool()
    assert_close(sdpa[real], eager[real])


def test_long_prompts_are_weighed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = wings()
    with torch.no_grad():
        full = model(**batch()).logits
        monkeypatch.setattr("surgery.layers.attention._CHUNK", 3)
        pieces = model(**batch()).logits
    assert_close(full, pieces)


# --- starts and paths -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["qwen2", "llama", "qwen3", "phi3"])
def test_start_is_the_base_to_the_bit(family: str, dtype: torch.dtype) -> None:
    wanted = computed(base_model(family=family, dtype=dtype), **plain(batch()))
    _, model = wings(perturbed=False, family=family, dtype=dtype)
    assert torch.equal(computed(model, **batch()), wanted)
    move(model)
    assert not torch.equal(computed(model, **batch()), wanted)
    with text_path(model):
        assert torch.equal(computed(model, **batch()), wanted)
    with model.disable_adapter():
        assert torch.equal(computed(model, **batch()), wanted)


def test_text_path_generates_what_the_base_does() -> None:
    how = {"max_new_tokens": 6, "do_sample": False}
    wanted = base_model().generate(**plain(batch()), **how)
    _, model = wings()
    with text_path(model):
        assert torch.equal(model.generate(**batch(), **how), wanted)


def test_prompt_without_an_image_uses_the_textual_learner_alone() -> None:
    _, model = wings()
    with torch.no_grad():
        before = model(**batch()).logits
        for name, parameter in model.named_parameters():
            if ".visual." in name or ".router." in name:
                parameter.add_(1.0)
        after = model(**batch()).logits
    same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert same == [False, True, False]


def test_image_mask_says_the_same_as_the_token() -> None:
    _, model = wings()
    inputs = by_token(batch())
    with torch.no_grad():
        by_type = model(**inputs).logits
        by_mask = model(**inputs, image_mask=inputs["input_ids"] == IMAGE).logits
        other = model(**inputs, image_mask=torch.zeros_like(inputs["input_ids"])).logits
    assert torch.equal(by_type, by_mask)
    assert not torch.equal(by_type[0], other[0])


def tiny_llava() -> Any:
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        image_size=16, patch_size=8,
    )  # fmt: skip
    text = tiny_config("llama", initializer_range=0.2)
    torch.manual_seed(0)
    config = LlavaConfig(text_config=text, vision_config=vision, image_token_index=IMAGE)
    return LlavaForConditionalGeneration(config).eval()


def test_image_features_of_a_vision_model_are_what_the_visual_learner_sees() -> None:
    model = tiny_llava()
    ids = torch.cat((prompt("tt"), torch.full((4,), IMAGE), prompt("ttt", 1)))[None]
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids, "pixel_values": pixels, "attention_mask": torch.ones_like(ids)}
    wanted = computed(model, **inputs)
    model = apply_plan(planned(model, "wings", "llm=frozen", "rank=4"), model)
    assert torch.equal(computed(model, **inputs), wanted)
    move(model)
    with text_path(model):
        assert torch.equal(computed(model, **inputs), wanted)
    how = {"max_new_tokens": 6, "do_sample": False}
    cached = model.generate(**inputs, **how)
    assert torch.equal(cached, model.generate(**inputs, **how, use_cache=False))
    model(**inputs, labels=ids).loss.backward()
    trained = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert any("projector" in name for name in trained)
    assert all(gradient is not None and gradient.any() for gradient in trained.values())


# --- caches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen2", "llama", "phi3"])
@pytest.mark.parametrize("heads", ["full", "grouped"])
def test_cached_generation_is_the_uncached_one(family: str, heads: str) -> None:
    _, model = wings(f"heads={heads}", family=family)
    how = {
        "max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False,
        "output_logits": True, "return_dict_in_generate": True,
    }  # fmt: skip
    cached = model.generate(**batch(), **how)
    uncached = model.generate(**batch(), **how, use_cache=False)
    assert torch.equal(cached.sequences, uncached.sequences)
    assert_close(torch.stack(cached.logits), torch.stack(uncached.logits))


def test_sequence_goes_on_with_a_second_image_in_any_pieces() -> None:
    _, model = wings()
    kinds = "tiittttiitt"
    ids, mask = prompt(kinds)[None], torch.tensor([images(kinds)])
    with torch.no_grad():
        wanted = model(ids, image_mask=mask, use_cache=False).logits
        for sizes in ([5, 6], [1] * 11, [3, 1, 7]):
            cache, parts, end = None, [], 0
            for part in ids.split(sizes, dim=1):
                end += part.shape[1]
                message = {"image_mask": mask[:, :end], "past_key_values": cache}
                out = model(input_ids=part, use_cache=True, **message)
                cache = out.past_key_values
                parts.append(out.logits)
            assert_close(torch.cat(parts, dim=1), wanted)


def test_later_tokens_do_not_change_earlier_ones() -> None:
    _, model = wings()
    kinds = "tttttiit"
    ids, mask = prompt(kinds)[None], torch.tensor([images(kinds)])
    with torch.no_grad():
        full = model(ids, image_mask=mask).logits
        half = model(ids[:, :5], image_mask=mask[:, :5]).logits
    assert_close(full[:, :5], half)


def test_beam_search_moves_the_learners_caches_too() -> None:
    _, model = wings()
    move(model, 1.0)
    how = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False}
    inputs = by_token(batch())
    cached = model.generate(**inputs, **how)
    assert torch.equal(cached, model.generate(**inputs, **how, use_cache=False))


def test_crop_of_a_cache_reaches_the_learners() -> None:
    _, model = wings()
    ids = by_token(batch(["tiitttti"]))["input_ids"]
    with torch.no_grad():
        cache = model(ids, use_cache=True).past_key_values
        cache.crop(-3)
        out = model(input_ids=ids[:, 5:], past_key_values=cache, use_cache=True).logits
        wanted = model(ids).logits[:, 5:]
    assert_close(out, wanted)


def test_cache_that_the_learners_have_not_seen_is_refused() -> None:
    _, model = wings()
    ids = by_token(batch(["tiitttti"]))["input_ids"]
    cache = model(ids[:, :5], use_cache=True).past_key_values
    del cache.layers[4:]
    with pytest.raises(SurgeryError, match="A408"):
        model(input_ids=ids[:, 5:], past_key_values=cache, use_cache=True)


def test_rows_of_both_paths_run_separately() -> None:
    _, model = wings()
    paths = ["multimodal", "text", "multimodal"]
    inputs = batch()
    with torch.no_grad():
        mixed = model(**inputs, paths=paths).logits
        own = model(**{k: v[[0, 2]] for k, v in inputs.items()}).logits
        with text_path(model):
            text = model(**{k: v[1:2] for k, v in inputs.items()}).logits
    assert torch.equal(mixed[[0, 2]], own)
    assert torch.equal(mixed[1:2], text)


# --- training -------------------------------------------------------------------------------------


def gradients(model: Any, rows: list[str] = ROWS) -> dict[str, torch.Tensor]:
    inputs = batch(rows)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    model.zero_grad()
    model(**inputs, labels=labels, use_cache=False).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_gradients_reach_all_of_the_learners_and_nothing_else() -> None:
    plan, model = wings()
    found = gradients(model)
    planned_names = {name_in_memory(e, t.name) for e in plan.edits for t in e.tensors}
    assert set(found) == planned_names
    assert all(gradient.any() for gradient in found.values())


def test_prompts_without_images_train_the_textual_learner_alone() -> None:
    _, model = wings()
    found = gradients(model, ["ttttt", "ttt"])
    assert found
    assert all(".textual." in name for name in found)


def test_first_step_reaches_the_output_pairs() -> None:
    _, model = wings(perturbed=False)
    found = gradients(model)
    moving = {name for name, gradient in found.items() if gradient.any()}
    assert moving == {name for name in found if name.endswith(".o.B.weight")}


def test_checkpointed_blocks_give_the_same_gradients() -> None:
    _, model = wings()
    model.train()
    wanted = gradients(model)
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    found = gradients(model)
    assert set(found) == set(wanted)
    for name, gradient in wanted.items():
        assert_close(found[name], gradient)


def test_gradients_equal_a_slow_implementation() -> None:
    plan, model = wings("heads=grouped")
    row = ROWS[0]
    found = gradients(model, [row])
    weights = weights_of(plan, model)
    added = {t.name: name_in_memory(e, t.name) for e in plan.edits for t in e.tensors}
    for name in added:
        weights[name] = weights[name].clone().requires_grad_(True)
    ids = prompt(row).tolist()
    logits = Slow(weights, 4096, 1.0).logits(ids, images(row))[:-1]
    torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:])).backward()
    for name, in_memory in added.items():
        wanted = weights[name].grad
        assert wanted is not None
        assert_close(found[in_memory], wanted, 1e-4)


# --- counts, disk and memory ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "added"), [("heads=full", 75_792_456), ("heads=grouped", 59_277_384)]
)
def test_count_on_qwen_is_exact(override: str, added: int) -> None:
    recipe = load_recipe("wings", ["model=builtin/qwen2.5-3b", "llm=frozen", override])
    plan = plan_recipe(recipe)
    assert plan.added == plan.trainable == added
    assert plan.trainable_in(plan.stages[0]) == 36 * 4 * 2 * 64 * 2048 or override != "heads=full"
    assert not plan.in_place


def test_released_form_trains_the_decoder_too() -> None:
    plan = plan_recipe(load_recipe("wings", ["model=builtin/qwen2.5-3b"]))
    assert plan.in_place
    assert plan.trainable == plan.base + 75_792_456
    assert not plan.stages[0].selection.base


def wings_on_disk(tmp_path: Path, llm: str, *overrides: str) -> tuple[Plan, Path]:
    base = save_tiny(tmp_path / "base")
    words = [*FROZEN[1:], f"model={base}", f"llm={llm}", *overrides]
    plan = plan_recipe(load_recipe("wings", words), weights=True)
    write_adapter(plan, tmp_path / "adapter")
    return plan, tmp_path / "adapter"


@pytest.mark.parametrize("llm", ["frozen", "full"])
def test_disk_and_memory_give_the_same_tensors(tmp_path: Path, llm: str) -> None:
    plan, folder = wings_on_disk(tmp_path, llm)
    loaded = load_adapter(folder, trainable=True)
    applied = apply_plan(plan, load_base(str(tmp_path / "base")))
    first, second = dict(loaded.named_parameters()), dict(applied.named_parameters())
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    trains = {name for name, p in first.items() if p.requires_grad}
    assert trains == {name for name, p in second.items() if p.requires_grad}
    assert sum(first[name].numel() for name in trains) == plan.trainable


@pytest.mark.parametrize("llm", ["frozen", "full"])
def test_saved_learners_come_back(tmp_path: Path, llm: str) -> None:
    plan, folder = wings_on_disk(tmp_path, llm)
    model = load_adapter(folder, trainable=True)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    wanted = computed(model.eval(), **batch())
    save_adapter(plan, model, tmp_path / "saved")
    assert (tmp_path / "saved" / "base").is_dir() == (llm == "full")
    assert is_rounding(computed(load_adapter(tmp_path / "saved").eval(), **batch()), wanted)


@pytest.mark.parametrize("llm", ["frozen", "full"])
def test_verify_passes(tmp_path: Path, llm: str) -> None:
    base = save_tiny(tmp_path / "base")
    token = int(make_prompts(base, tiny_model()).ids[0, 3])
    _, folder = wings_on_disk(tmp_path, llm, f"{QUIET}.image_token_id={token}")
    outcomes = {o.check: (o.state, o.what) for o in verify_adapter(folder).outcomes}
    assert all(state != "failed" for state, _ in outcomes.values()), outcomes


def test_unload_gives_the_base_back() -> None:
    _, model = wings()
    base = model.unload()
    inputs = plain(batch())
    assert torch.equal(computed(base, **inputs), computed(base_model(), **inputs))


# --- beside others, and refusals ------------------------------------------------------------------


def test_lora_in_the_same_blocks_trains_too() -> None:
    plan, model = wings("+operations.lora={op: lora, blocks: all, rank: 2}", perturbed=False)
    wanted = computed(base_model(), **plain(batch()))
    assert plan.loras()
    assert torch.equal(computed(model, **batch()), wanted)


@pytest.mark.parametrize(
    ("overrides", "code"),
    [
        (("+operations.more={op: duplicate, blocks: [0]}",), "P204"),
        (("+operations.more={op: learner, blocks: [0], rank: 2}",), "P205"),
        (("rank=64",), "P208"),
        (("llm=full", "+operations.more={op: lora, blocks: all}"), "P207"),
    ],
)
def test_conflicts_are_refused(overrides: tuple[str, ...], code: str) -> None:
    with pytest.raises(SurgeryError, match=code):
        wings(*overrides)


@pytest.mark.parametrize("family", ["gpt2", "gemma3_text"])
def test_blocks_of_another_shape_are_refused(family: str) -> None:
    with pytest.raises(SurgeryError, match="P215"):
        wings(family=family)


@pytest.mark.parametrize("trains", [False, True])
def test_blocks_that_add_otherwise_are_refused(trains: bool) -> None:
    _, model = wings()
    model.train(trains)
    for block in model.get_base_model().model.layers:
        block.post_attention_layernorm.register_forward_pre_hook(lambda m, args: (2 * args[0],))
        block.post_attention_layernorm._forward_pre_hooks.move_to_end(
            next(reversed(block.post_attention_layernorm._forward_pre_hooks)), last=False
        )
    with pytest.raises(SurgeryError, match="A416"):
        model(**batch())


def test_dropout_before_the_sum_is_no_other_sum() -> None:
    _, model = wings(family="phi3", resid_pdrop=0.5)
    learners = [m for m in model.modules() if isinstance(m, BlockLearners)]
    model.train()(**batch())
    assert not any(learner.is_confirmed for learner in learners)
    model.eval()(**batch())
    assert all(learner.is_confirmed for learner in learners)
    model.train()(**batch())


def test_merging_is_refused() -> None:
    _, model = wings()
    with pytest.raises(SurgeryError, match="A412"):
        model.merge_and_unload()


def test_attention_that_shows_no_weights_is_refused() -> None:
    def closed(module: Any, query: Any, key: Any, value: Any, mask: Any, **how: Any) -> Any:
        return query.transpose(1, 2).contiguous(), None

    AttentionInterface.register("closed", closed)
    _, model = wings()
    model.set_attn_implementation("closed")
    with pytest.raises(SurgeryError, match="A413"):
        model(**batch())


def test_a_trained_base_has_no_text_path_of_its_own(tmp_path: Path) -> None:
    _, folder = wings_on_disk(tmp_path, "full")
    model = load_adapter(folder)
    with pytest.raises(SurgeryError, match="A405"), text_path(model):
        pass
    with pytest.raises(SurgeryError, match="A405"):
        model(**batch(), paths=["text", "multimodal", "multimodal"])
    with pytest.raises(SurgeryError, match="A409"):
        load_adapter(folder, tiny_model())


def test_model_that_can_not_know_its_images_is_refused() -> None:
    model = tiny_model()
    model = apply_plan(planned(model, "wings", *FROZEN[:2]), model)
    with pytest.raises(SurgeryError, match="A410"):
        model(**plain(batch()))
