"""What counts as the same: bits of tensors, and what rounding explains of computed numbers."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from other_processor import other_processor
from support.conform import RECIPES, save_tiny
from tiny import tiny_model, tokens

from surgery.adapter.folder import load_base, write_adapter
from surgery.graphs.image_placement_check import _differing
from surgery.model.numerics import Sums, frozen, same_bits
from surgery.model.quiet import quiet
from surgery.plan.planner import plan_recipe
from surgery.recipe.loading import load_recipe
from surgery.verification.context import (
    VerificationContext,
    checked_plan,
    forward_logits,
    open_context,
)
from surgery.verification.prompts import Prompts
from surgery.verification.runner import Outcome, known_checks, run_checks

pytestmark = pytest.mark.usefixtures("one_thread")
CHECKS = {check.name: check for check in known_checks()}
SMALL = Sums(torch.float32, blocks=4, width=64)


def outcome(context: VerificationContext, name: str) -> Outcome:
    return next(iter(run_checks(context, checks=[CHECKS[name]])))


def written(
    folder: Path, model_type: str, recipe: str, *overrides: str, dtype: torch.dtype = torch.float32
) -> Path:
    """An adapter of a recipe on a tiny model of a type; its folder."""
    with quiet():
        save_tiny(model_type, folder / "base")
        if dtype != torch.float32:
            load_base(str(folder / "base")).to(dtype).save_pretrained(folder / "base")
    words = [f"model={folder / 'base'}", *overrides]
    recipe = str(RECIPES / f"{recipe}.yaml")
    write_adapter(plan_recipe(load_recipe(recipe, words), weights=True), folder / "adapter")
    return folder / "adapter"


def opened_context(folder: Path) -> VerificationContext:
    with quiet():
        return open_context(checked_plan(folder), folder)


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("copied"), "llama", "duplicate")


def one_ulp(tensor: torch.Tensor) -> None:
    """Move one number to the next one that its type has."""
    with torch.no_grad():
        first = tensor.view(-1)[:1]
        first.copy_(torch.nextafter(first, torch.full_like(first, torch.inf)))


# --- bits -----------------------------------------------------------------------------------------


def test_bits_tell_what_equality_does_not() -> None:
    nan, zero = torch.tensor([torch.nan]), torch.zeros(1)
    assert same_bits(nan, nan.clone())
    assert not same_bits(zero, -zero)
    assert not same_bits(zero, zero.half())
    assert not same_bits(zero, torch.zeros(1, 1))
    assert same_bits(torch.arange(6).reshape(2, 3).T, torch.tensor([[0, 3], [1, 4], [2, 5]]))


def test_one_ulp_in_the_base_is_seen(copied: Path) -> None:
    context = opened_context(copied)
    one_ulp(context.model.get_base_model().model.embed_tokens.weight)
    assert "1 tensors of the base have changed" in outcome(context, "text_path").what


def test_one_ulp_in_a_copy_is_no_start(copied: Path) -> None:
    context = opened_context(copied)
    assert context.is_at_start()
    name = next(n for n in context.changeable() if n.endswith("mlp.up_proj.weight"))
    one_ulp(context._stored[name])
    assert not context.is_at_start()


def test_one_ulp_in_what_was_saved_is_seen(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft import peft_model

    honest = peft_model.get_peft_model_state_dict

    def off(*args: Any, **kwargs: Any) -> Any:
        tensors = {name: tensor.clone() for name, tensor in honest(*args, **kwargs).items()}
        one_ulp(next(iter(tensors.values())))
        return tensors

    monkeypatch.setattr(peft_model, "get_peft_model_state_dict", off)
    assert (
        "1 tensors are loaded with other values"
        in outcome(opened_context(copied), "save_reload").what
    )


@pytest.mark.parametrize("recipe", ["insert", "in_place"])
def test_one_ulp_in_a_frozen_tensor_of_a_trained_base_is_seen(recipe: str, tmp_path: Path) -> None:
    if recipe == "insert":
        context = opened_context(written(tmp_path, "llama", "insert"))
    else:
        save_tiny("llama", tmp_path / "base")
        words = [f"model={tmp_path / 'base'}", "train=[blocks]"]
        plan = plan_recipe(load_recipe("full_finetune", words), weights=True)
        write_adapter(plan, tmp_path / "adapter")
        context = opened_context(tmp_path / "adapter")
    assert outcome(context, "start_equality").passed
    one_ulp(context.model.get_input_embeddings().weight)
    assert "1 frozen tensors differ" in outcome(context, "start_equality").what


# --- rounding -------------------------------------------------------------------------------------


def test_rounding_grows_with_what_is_summed_and_shrinks_with_the_type() -> None:
    assert 1e-6 < SMALL.rounding < 1e-5
    assert replace(SMALL, blocks=36).rounding > SMALL.rounding
    assert replace(SMALL, width=11008).rounding > SMALL.rounding
    assert replace(SMALL, blocks=36, width=11008).rounding < 3e-4
    assert 0.01 < replace(SMALL, dtype=torch.bfloat16).rounding < 0.1


def test_difference_says_what_it_is() -> None:
    wanted = torch.tensor([1.0, -4.0])
    same, near, far, broken = (
        SMALL.compare(found, wanted)
        for found in (wanted.clone(), wanted + 1e-6, wanted + 1e-2, wanted * torch.nan)
    )
    assert [d.is_zero for d in (same, near, far, broken)] == [True, False, False, False]
    assert [d.is_rounding for d in (same, near, far, broken)] == [True, True, False, False]
    assert str(same) == "bit for bit"
    assert "where rounding explains" in str(near)


def test_rounding_explains_another_order_of_every_sum() -> None:
    model, ids = tiny_model(), tokens()
    with torch.no_grad():
        wanted = model(ids).logits
        with other_processor():
            found = model(ids).logits
    difference = SMALL.compare(found, wanted)
    assert difference.is_rounding
    assert not difference.is_zero


def test_rounding_follows_the_weights_where_logits_are_finer(tmp_path: Path) -> None:
    context = opened_context(
        written(
            tmp_path, "mamba", "lora", "operations.adapters.modules=[mixer]", dtype=torch.bfloat16
        )
    )
    assert context.reference.logits.dtype == torch.float32
    assert context.sums.dtype == torch.bfloat16


def test_frozen_puts_flags_back() -> None:
    model = torch.nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    with frozen(model):
        assert not torch.is_grad_enabled()
        assert not any(p.requires_grad for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == [True, False]


class Strided(torch.nn.Module):
    """What Mamba's x_proj does: a matrix on an input whose last dimension isn't the fastest."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(2, 128, generator=seeded()))

    def forward(self, input_ids: torch.Tensor, **others: Any) -> Any:
        turned = torch.randn(4, 128, 20, generator=seeded()).transpose(1, 2)
        logits = torch.nn.functional.linear(turned, self.weight)
        return type("Output", (), {"logits": logits})()


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("processor", [nullcontext, other_processor])
def test_an_answer_does_not_depend_on_what_trains(processor: Any) -> None:
    ids = torch.zeros(4, 20, dtype=torch.long)
    prompts = Prompts(ids, torch.ones_like(ids), 0, "zeros", ids.bool())
    model = Strided()
    with processor():
        trains = forward_logits(model, prompts)
        assert torch.equal(trains, forward_logits(model.requires_grad_(False), prompts))


def test_an_image_changes_nothing_where_only_rounding_differs() -> None:
    rows, weight = torch.randn(9, 64, generator=seeded()), torch.randn(64, 64, generator=seeded())
    mask = torch.tensor([True, False])
    counts = range(1, 9)  # of two counts, sums may by chance begin at one place
    with other_processor():
        whole, parts = rows @ weight, [rows[:count] @ weight for count in counts]
    assert any(not torch.equal(whole[: len(part)], part) for part in parts)
    for part in parts:
        hidden = {"hidden": whole[: len(part)], "mask": mask}
        assert not [*_differing(hidden, {"hidden": part, "mask": mask})]
    assert [*_differing(hidden, {"hidden": part + 1e-3, "mask": mask})] == ["hidden"]
    assert [*_differing({"mask": mask}, {"mask": ~mask})] == ["mask"]
    assert [*_differing({"mask": mask}, {})] == ["mask"]


# --- other processors -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "recipe"), [("jamba", "lora"), ("llama", "duplicate"), ("qwen2", "expert")]
)
def test_checks_hold_on_a_processor_that_rounds_by_every_condition(
    model_type: str, recipe: str, tmp_path: Path
) -> None:
    folder = written(tmp_path, model_type, recipe)
    with other_processor(), quiet():
        outcomes = {o.check: o for o in run_checks(opened_context(folder))}
    assert {o.check: o.what for o in outcomes.values() if o.state == "failed"} == {}


@pytest.mark.parametrize(
    ("drift", "state", "message"),
    [(0.0, "passed", "bit for bit"), (1e-7, "passed", "up to rounding"), (1e-3, "failed", "other")],
)
def test_an_outcome_says_whether_logits_are_the_same_by_bits_or_by_rounding(
    copied: Path, monkeypatch: pytest.MonkeyPatch, drift: float, state: str, message: str
) -> None:
    context = opened_context(copied)
    monkeypatch.setattr(
        "surgery.verification.checks.save_reload.forward_logits",
        lambda *args: forward_logits(*args) * (1 + drift),
    )
    if drift:
        monkeypatch.setattr(
            "surgery.verification.checks.save_reload.largest_difference", lambda *args: 0.0
        )
    found = outcome(context, "save_reload")
    assert (found.state, message in found.what) == (state, True), found.what


def test_a_broken_scale_is_no_rounding(copied: Path) -> None:
    context = opened_context(copied)
    block = context.model.get_base_model().model.layers[0]
    block.modules_to_save["default"].post_attention_layernorm.variance_epsilon *= 1.5
    assert outcome(context, "start_equality").state == "failed"
