"""Which of all decoders of transformers route, decided on each as it is configured."""

from pathlib import Path

import pytest
import yaml
from huggingface_hub.errors import StrictDataclassClassValidationError
from support.model_types import all_types, causal_types
from support.shrink import tiny_config
from transformers import CONFIG_MAPPING

from surgery.diagnostic import SurgeryError
from surgery.lint import lint_plan
from surgery.plan import Plan, Stage
from surgery.read import read_anatomy
from surgery.recipe import Recipe
from surgery.target import load_target
from surgery.trainable import Selection

LISTS = yaml.safe_load((Path(__file__).parents[1] / "rules" / "routed_types.yaml").read_text())
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
        plan = Plan(recipe, anatomy, (), (Stage("", Selection()),))
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
