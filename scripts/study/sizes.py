"""How large the study is: in full, and quick."""

from __future__ import annotations

from dataclasses import dataclass

RECIPES = (
    "full_finetune",
    "lora",
    "cogvlm_pre",
    "cogvlm_post",
    "cogvlm_skip",
    "genieblue_pre",
    "genieblue_post",
    "genieblue_skip",
    "wings",
)


@dataclass(frozen=True)
class Size:
    """Recipes, seeds and steps.

    Args:
        recipes: without text.
        mixed: with text mixed in.
        seeds: of each.
        tower: steps of the tower's pretraining.
        align: steps of the projector alone.
        tune: steps of each recipe.
        test: held-out pictures with one digit, and with two.
    """

    recipes: tuple[str, ...]
    mixed: tuple[str, ...]
    seeds: tuple[int, ...]
    tower: int
    align: int
    tune: int
    test: int


FULL = Size(RECIPES, ("full_finetune", "lora", "genieblue_skip"), (0, 1, 2), 1000, 200, 350, 150)
QUICK = Size(
    ("full_finetune", "cogvlm_skip", "genieblue_skip"), ("genieblue_skip",), (0,), 400, 80, 110, 60
)
