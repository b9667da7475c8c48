"""Where a base itself is unlike most, the checks say so; they still fail on what we do wrong."""

from pathlib import Path

import pytest
import torch
from support.conform import RECIPES
from support.shrink import tiny_config

from surgery.adapter.folder import write_adapter
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.model.meta_device import auto_class
from surgery.model.quiet import quiet
from surgery.paths.switching import text_path
from surgery.plan.planner import plan_recipe
from surgery.recipe.loading import load_recipe
from surgery.verification.context import VerificationContext, checked_plan, open_context
from surgery.verification.runner import Outcome, known_checks, run_checks


@pytest.fixture(autouse=True)
def _calm():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with quiet():
        yield
    torch.set_num_threads(threads)


def opened(
    folder: Path, model_type: str, recipe: str, *overrides: str, **changed
) -> VerificationContext:
    """An adapter of a recipe on a tiny model of a type."""
    config = tiny_config(model_type)
    for name, value in changed.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    auto_class(config).from_config(config).save_pretrained(folder / "base")
    words = [f"model={folder / 'base'}", *overrides]
    plan = plan_recipe(load_recipe(RECIPES / f"{recipe}.yaml", words), weights=True)
    write_adapter(plan, folder / "adapter")
    return open_context(checked_plan(folder / "adapter"), folder / "adapter")


def run(name: str, context: VerificationContext) -> Outcome:
    (check,) = [check for check in known_checks() if check.name == name]
    (outcome,) = run_checks(context, checks=[check])
    return outcome


@pytest.mark.parametrize("recipe", ["duplicate", "lora"])
def test_attention_to_an_absent_encoder_needs_no_gradients(tmp_path, recipe):
    words = ["operations.adapters.modules=[attention,mlp]"] if recipe == "lora" else []
    outcome = run("gradients", opened(tmp_path, "bart", recipe, *words))
    assert outcome.passed
    assert "what the base itself doesn't use" in outcome.what


def test_lora_that_is_passed_by_still_fails(tmp_path):
    words = ["operations.adapters.modules=[attention,mlp]"]
    context = opened(tmp_path, "llama", "lora", *words)
    layer = context.decoder.get_submodule("model.layers.1.mlp.up_proj")
    layer.forward = layer.base_layer.forward
    outcome = run("gradients", context)
    assert outcome.state == "failed"
    assert "2 planned parameters get no gradient" in outcome.what


def test_base_that_differs_with_its_cache_is_reported(tmp_path):
    outcome = run("cached_generation", opened(tmp_path, "doge", "duplicate", keep_window_size=8))
    assert outcome.passed
    assert "the base itself differs" in outcome.what


def test_constants_in_buffers_are_not_perturbed(tmp_path):
    context = opened(tmp_path, "minimax", "duplicate")
    buffers = {n: b.clone() for n, b in context.model.named_buffers() if "modules_to_save" in n}
    context.perturb()
    assert buffers
    after = dict(context.model.named_buffers())
    assert all(torch.equal(before, after[name]) for name, before in buffers.items())
    assert run("cached_generation", context).passed


def test_cross_attention_blocks_run_only_with_images(tmp_path):
    outcome = run("blocks_executed", opened(tmp_path, "mllama", "duplicate"))
    assert outcome.passed
    assert "all 3 blocks run once and in order, 1 run only with images" in outcome.what


def test_state_of_a_mamba_stays_on_its_path(tmp_path):
    model = opened(tmp_path, "mamba", "duplicate").model
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad(), text_path(model):
        cache = model(ids, use_cache=True).cache_params
    with pytest.raises(SurgeryError) as caught, torch.no_grad():
        model(ids[:, :1], cache_params=cache, use_cache=True)
    assert caught.value.diagnostics[0].code == "A408"
    with torch.no_grad(), text_path(model):
        model(ids[:, :1], cache_params=cache, use_cache=True)
