"""Words of `surgery train`: a bare key of a stage means that key of every stage."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from surgery.compose import knob_names, load_recipe
from surgery.recipe import Recipe
from surgery.stage import Stage

ONLY_STAGE: Final = "train"
"""The name of the stage of a recipe that names none."""


def stage_words(recipe: str | Path, words: Sequence[str]) -> list[str]:
    """Write words out, such as `steps=10` as `stages.align.steps=10 stages.finetune.steps=10`.

    A key of the recipe comes first, then a knob, then a key of a stage. Where the recipe has no
    stages, it gets one that trains what its `train` says.

    Args:
        recipe: as for `load_recipe`.
        words: overrides.
    """
    knobs = knob_names(recipe)
    short = [word for word in words if _is_of_a_stage(word, knobs)]
    if not short:
        return list(words)
    others = [word for word in words if word not in short]
    stages = list(load_recipe(recipe, others).stages) or [ONLY_STAGE]
    return [*others, *(f"stages.{stage}.{word}" for stage in stages for word in short)]


def _is_of_a_stage(word: str, knobs: Sequence[str]) -> bool:
    key = word.partition("=")[0].partition(".")[0]
    return key in Stage.model_fields and key not in Recipe.model_fields and key not in knobs
