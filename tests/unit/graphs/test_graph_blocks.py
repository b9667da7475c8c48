"""The graph of a block answers as the block does in its model, in prefill and then in decode."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from tiny import perturbed, tiny_model
from transformers import DynamicCache

from surgery.adapter.apply import apply_plan
from surgery.adapter.folder import load_base, save_adapter
from surgery.graphs.block.forms import BlockForm, Shape
from surgery.graphs.block.traced import Traced
from surgery.graphs.block.tracer import Tracer
from surgery.paths.switching import text_path
from surgery.plan.planner import Plan, plan_recipe
from surgery.recipe.loading import load_recipe
from surgery.vision.assemble import write_assembled

TOKENS = 12  # more than gemma3's sliding window of 8
KINDS = {"layer_types": ["sliding_attention", "full_attention"] * 2}
FAMILIES = {"qwen2": {}, "qwen3": {}, "llama": {}, "gemma3_text": KINDS, "phi3": {}}


def save_lively(folder: Path, family: str = "qwen2", **how: Any) -> Path:
    """A tiny model whose attention counts: a fresh one's is lost beside the residual."""
    model = tiny_model(family, **how)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1.5)
    model.save_pretrained(folder)
    return folder


def planned(folder: Path, recipe: str = "full_finetune", *overrides: str) -> Plan:
    return plan_recipe(load_recipe(recipe, [f"model={folder}", *overrides]), weights=True)


def answers(traced: Traced, feeds: dict[str, Any], folder: Path) -> dict[str, np.ndarray]:
    """What onnxruntime makes of the graph."""
    ir.save(traced.model, folder / "graph.onnx")
    session = ort.InferenceSession(folder / "graph.onnx", providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def feeds_of(traced: Traced, hidden: torch.Tensor, **others: np.ndarray) -> dict[str, np.ndarray]:
    feeds = {**traced.sample(), "hidden": hidden.numpy(), **others}
    return {name: feeds[name] for name in traced.names}


class Seen:
    """What went into a block of a living model, and what came out, call by call."""

    def __init__(self, block: torch.nn.Module) -> None:
        self.calls: list[tuple[torch.Tensor, torch.Tensor]] = []
        block.register_forward_hook(self._note, with_kwargs=True)

    def _note(self, block: Any, args: Any, kwargs: Any, out: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        out = out[0] if isinstance(out, tuple) else out
        self.calls.append((hidden.detach().clone(), out.detach().clone()))


def two_steps(model: Any, **first: Any) -> None:
    """A prompt, and one token after it along the model's own cache."""
    tokens = torch.randint(3, 128, (1, TOKENS + 1), generator=torch.Generator().manual_seed(0))
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(tokens[:, :-1], past_key_values=cache, use_cache=True, **first)
        later = {name: torch.zeros(1, 1, dtype=torch.bool) for name in first}
        model(tokens[:, -1:], past_key_values=cache, use_cache=True, **later)


def check(
    tracer: Tracer, form: BlockForm, seen: Seen, tmp_path: Path, masks: Any = None, **how: Any
) -> None:
    """Prefill, then decode with the keys and values that prefill gave."""
    (prompt, prompt_out), (token, token_out) = seen.calls
    masks = masks or ({}, {})
    how = {"weights": "real", **how}
    prefill = tracer.trace(form, Shape("prefill", TOKENS, 0), **how)
    first = answers(prefill, feeds_of(prefill, prompt, **masks[0]), tmp_path)
    np.testing.assert_allclose(first["new_hidden"], prompt_out, atol=1e-4, rtol=1e-4)
    unmasked = feeds_of(prefill, prompt, **masks[0]) | {
        "mask": np.zeros_like(prefill.sample()["mask"])
    }
    other = answers(prefill, unmasked, tmp_path)["new_hidden"]
    assert (
        np.abs(other - first["new_hidden"]).max() > 1e-2
    )  # so that the attention was seen to count
    decode = tracer.trace(form, Shape("decode", 1, TOKENS), **how)
    past = {"past_key": first["new_key"], "past_value": first["new_value"]}
    second = answers(decode, feeds_of(decode, token, **past, **masks[1]), tmp_path)
    np.testing.assert_allclose(second["new_hidden"], token_out, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_prefill_then_decode_as_in_the_model(family: str, tmp_path: Path) -> None:
    folder = save_lively(tmp_path / "base", family, **FAMILIES[family])
    tracer = Tracer(planned(folder))
    assert len(tracer.forms) == (2 if family == "gemma3_text" else 1)
    for form in tracer.forms:
        model = load_base(str(folder)).eval()
        seen = Seen(model.get_submodule(form.module_path))
        two_steps(model)
        check(tracer, form, seen, tmp_path)


def adapted(tmp_path: Path, recipe: str, *overrides: str) -> tuple[Plan, Any, Path]:
    """A tiny model with an adapter that does something, and the adapter's folder."""
    plan = planned(save_lively(tmp_path / "base"), recipe, *overrides)
    model = perturbed(apply_plan(plan, load_base(str(plan.files.folder)))).eval()
    save_adapter(plan, model, tmp_path / "adapter")
    return plan, model, tmp_path / "adapter"


def test_copies_and_lora_of_an_adapter(tmp_path: Path) -> None:
    plan, model, adapter = adapted(tmp_path, "genieblue_skip")
    tracer = Tracer(plan)
    forms = {form.name: form for form in tracer.forms}
    assert {n: (f.blocks, f.operation) for n, f in forms.items()} == {
        "block+lora": ((0, 1, 2), "adapters"),
        "block": ((3,), ""),
    }
    assert all(form.paths == ("text", "multimodal") for form in forms.values())
    lora, copied = (
        Seen(model.get_submodule(f"base_model.model.{forms[name].module_path}")) for name in forms
    )
    two_steps(model)
    check(tracer, forms["block+lora"], lora, tmp_path, adapter=adapter)
    check(tracer, forms["block"], copied, tmp_path, adapter=adapter)


def test_zeros_for_lora_are_the_text_path(tmp_path: Path) -> None:
    plan, model, adapter = adapted(tmp_path, "genieblue_skip")
    tracer = Tracer(plan)
    form = tracer.forms[0]
    lora = Seen(model.get_submodule(f"base_model.model.{form.module_path}"))
    with text_path(model):
        two_steps(model)
    traced = tracer.trace(form, Shape("prefill", TOKENS, 0), weights="real", adapter=adapter)
    zeros = {n: np.zeros_like(a) for n, a in traced.sample().items() if ".lora_" in n}
    assert len(zeros) == 14
    assert "model.layers.0.mlp.down_proj.lora_B.weight" in zeros
    check(tracer, form, lora, tmp_path, (zeros, zeros), adapter=adapter)


@pytest.mark.parametrize("form", ["blend", "segments"])
def test_static_experts(form: str, tmp_path: Path) -> None:
    how = ["operations.experts.runs=[[2,9]]"] if form == "segments" else []
    plan, model, adapter = adapted(tmp_path, "cogvlm_skip", f"form={form}", *how)
    tracer = Tracer(plan)
    expert = next(f for f in tracer.forms if f.name == "block+expert")
    assert (expert.paths, expert.operation) == (("multimodal",), "experts")
    assert next(f for f in tracer.forms if f.name == "block").paths == ("text",)
    seen = Seen(model.get_submodule(f"base_model.model.{expert.module_path}"))
    mask = torch.zeros(1, TOKENS, dtype=torch.bool)
    mask[:, 2:9] = True
    two_steps(model, image_mask=mask)
    masks = ({"image_mask": mask.numpy()}, {"image_mask": np.zeros((1, 1), dtype=bool)})
    check(tracer, expert, seen, tmp_path, masks, adapter=adapter)


def test_expert_of_a_blend_takes_part(tmp_path: Path) -> None:
    plan, _, adapter = adapted(tmp_path, "cogvlm_skip", "form=blend")
    tracer = Tracer(plan)
    expert = next(f for f in tracer.forms if f.name == "block+expert")
    traced = tracer.trace(expert, Shape("prefill", 4, 8), weights="real", adapter=adapter)
    feeds = traced.sample()
    found = [
        answers(traced, {**feeds, "image_mask": np.full((1, 4), image)}, tmp_path)["new_hidden"]
        for image in (False, True)
    ]
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_one_block_of_the_tower_and_the_projector(tmp_path: Path) -> None:
    recipe = load_recipe("sighted", [])
    write_assembled(recipe, tmp_path / "model")
    plan = plan_recipe(recipe, weights=True, assembled=tmp_path / "model")
    tracer = Tracer(plan)
    model = load_base(str(tmp_path / "model")).float().eval()
    forms = [form for form in tracer.forms if not form.blocks]
    assert [form.name for form in forms] == ["vision.block", "projector"]
    seen = [Seen(model.get_submodule(form.module_path)) for form in forms]
    size = model.config.vision_config.image_size
    pixels = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    model.get_submodule("model").get_image_features(pixel_values=pixels)
    for form, calls in zip(forms, seen, strict=True):
        traced = tracer.trace(form, Shape("prefill", 1, 0), weights="real")
        hidden, out = calls.calls[0]
        found = answers(traced, {"hidden": hidden.numpy()}, tmp_path)["new_hidden"]
        np.testing.assert_allclose(found, out, atol=1e-4)


def test_reference_is_the_graph(tmp_path: Path) -> None:
    tracer = Tracer(plan_recipe(load_recipe("lora", [])))
    traced = tracer.trace(tracer.forms[0], Shape("decode", 1, 16), weights="random")
    feeds, wanted = traced.sample(7), copy.deepcopy(traced.sample(7))
    assert feeds.keys() == wanted.keys() == set(traced.names)
    assert all(np.array_equal(feeds[name], wanted[name]) for name in feeds)
    assert not np.array_equal(feeds["hidden"], traced.sample(8)["hidden"])
    found, reference = answers(traced, feeds, tmp_path), traced.run(feeds)
    assert found.keys() == reference.keys() == {"new_hidden", "new_key", "new_value"}
    for name, array in found.items():
        np.testing.assert_allclose(array, reference[name], atol=1e-4)
