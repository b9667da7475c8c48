"""Which of all decoders of transformers route, decided on each as it is configured."""

from pathlib import Path

import pytest
import yaml
from huggingface_hub.errors import StrictDataclassClassValidationError
from support.model_types import all_types, causal_types
from support.shrink import tiny_config
from transformers import CONFIG_MAPPING

from surgery.diagnostics.diagnostic import SurgeryError
from surgery.lint.linter import Depth, lint_subject
from surgery.lint.rule_runner import lint_plan
from surgery.lint.subject import find_subjects
from surgery.model.reader import read_anatomy
from surgery.npu.target import load_target
from surgery.plan.planner import Plan, PlannedStage
from surgery.plan.selection import Selection
from surgery.recipe.schema import Recipe

LISTS = yaml.safe_load((Path(__file__).parents[2] / "rules" / "routed_types.yaml").read_text())
ROUTED = {*LISTS["causal"], *LISTS["image_text"]}
NOT_BUILT = {
    *("evolla", "fast_vlm", "gemma3n", "gemma4_assistant", "gemma4_unified_assistant"),
    *("perception_lm", "pp_formulanet", "xlm"),
}
"""What transformers can't build here: timm is missing, or the type is a part of another."""
CANT_BE_BUILT = (
    SurgeryError,
    ValueError,
    NotImplementedError,
    StrictDataclassClassValidationError,
)
SAMPLE = sorted({*all_types()[::6], *LISTS["causal"][::4], *LISTS["image_text"][::4], "moshi"})


def default_config(model_type):
    return CONFIG_MAPPING[model_type]()


def is_rejected(model_type, makers, folder):
    """Whether L101 is an error for the first config that can be built; None where none can."""
    for make in makers:
        try:
            make(model_type).save_pretrained(folder / model_type)
            anatomy = read_anatomy(str(folder / model_type))
        except CANT_BE_BUILT:
            continue
        recipe = Recipe(name=model_type, model=str(folder / model_type))
        plan = Plan(recipe, anatomy, (), (PlannedStage("", Selection()),))
        found = lint_plan(plan, load_target("snapdragon"))
        return any(f.code == "L101" and f.severity == "error" for f in found)
    return None


def test_lists_are_of_the_types_that_there_are():
    assert set(LISTS["causal"]) <= set(causal_types())
    assert set(LISTS["image_text"]) <= set(all_types()) - set(causal_types())
    assert len(LISTS["causal"]) == 59  # 58 that route by default, and dbrx


def test_sample_is_decided_right(tmp_path):
    makers = (tiny_config, default_config)
    decided = {name: is_rejected(name, makers, tmp_path) for name in SAMPLE}
    assert {name for name, answer in decided.items() if answer} == ROUTED & set(SAMPLE)
    assert {name for name, answer in decided.items() if answer is None} <= NOT_BUILT


@pytest.mark.slow
def test_every_type_is_decided_right_at_its_default_config(tmp_path):
    makers = (default_config, tiny_config)
    decided = {name: is_rejected(name, makers, tmp_path) for name in all_types()}
    assert {name for name, answer in decided.items() if answer} == ROUTED
    assert {name for name, answer in decided.items() if answer is None} == NOT_BUILT


def llama4(folder, **how):
    """A tiny one, whose experts are all computed; `no_rope_layers` of 1 has complex angles."""
    config = CONFIG_MAPPING["llama4_text"](
        hidden_size=64,
        intermediate_size=64,
        intermediate_size_mlp=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=4,
        interleave_moe_layer_step=1,
        vocab_size=128,
        **how,
    )
    config.save_pretrained(folder)
    return lint_subject(*find_subjects([str(folder)]), [load_target("snapdragon")], Depth("graph"))


def test_the_block_that_was_traced_counts_and_not_the_family(tmp_path):
    report = llama4(tmp_path, no_rope_layers=[0])[0]
    assert [(f.code, f.severity) for f in report.findings] == [("L101", "note")]
    assert "became static graphs" in report.findings[0].why
    assert report.verdict == "clean"


def test_a_block_without_a_graph_for_another_reason_is_not_blamed_on_routing(tmp_path):
    report = llama4(tmp_path, no_rope_layers=[1])[0]
    said = {f.code: f for f in report.findings}
    assert said["L200"].severity == "error"
    assert "complex" in said["L200"].why
    assert "rout" not in said["L200"].fix.replace("rotary", "")
    assert said["L101"].severity == "error"
    assert "--prove" in said["L101"].fix
