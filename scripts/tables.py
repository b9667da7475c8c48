"""Trainable parameters of every recipe of GenieBlue's tables 4 and 5, ours beside the paper's.

`make tables`. No weights and no network: the shapes are built in. Ends with 1 where a number of
ours, rounded as the paper rounds, is another. Source: arXiv 2503.06019, tables 4 and 5, column
`#Param`, which counts the vision tower with its pooling head, and the projector.
"""

import sys
from collections.abc import Iterator
from typing import Final, NamedTuple

from rich.console import Console
from rich.table import Table

from surgery import load_recipe, plan_recipe

VISION: Final = "builtin/siglip-so400m-patch14-384"
PLACES: Final = ("post", "pre", "skip")
PAPER: Final = {
    "builtin/bluelm-3b": ("3161.26", "458.06", "1005.69", "1005.73"),
    "builtin/qwen2.5-3b": ("3527.81", "456.84", "1146.75", "1146.79"),
}
"""Millions: full fine-tuning, LoRA, each CogVLM, each GenieBlue."""


class Row(NamedTuple):
    """One row of a table.

    Args:
        model: the decoder.
        recipe: packaged recipe.
        paper: millions, as printed.
        trainable: parameters, ours.
    """

    model: str
    recipe: str
    paper: str
    trainable: int

    @property
    def agrees(self) -> bool:
        """Whether ours, in millions with two places, is what the paper prints."""
        return f"{self.trainable / 1e6:.2f}" == self.paper


def rows() -> Iterator[Row]:
    """Plan each recipe on each decoder; in the paper's order."""
    for model, (full, lora, cogvlm, genieblue) in PAPER.items():
        printed = {"full_finetune": full, "lora": lora}
        printed |= {f"cogvlm_{place}": cogvlm for place in PLACES}
        printed |= {f"genieblue_{place}": genieblue for place in PLACES}
        for recipe, paper in printed.items():
            plan = plan_recipe(load_recipe(recipe, [f"model={model}", f"vision={VISION}"]))
            yield Row(model, recipe, paper, plan.trainable)


def main() -> int:
    """Print a table for each decoder; 1 where a number differs."""
    found = list(rows())
    for model in PAPER:
        Console().print(_table(model, [row for row in found if row.model == model]))
    return 0 if all(row.agrees for row in found) else 1


def _table(model: str, found: list[Row]) -> Table:
    table = Table(title=f"{model}: trainable parameters", title_justify="left")
    table.add_column("recipe", no_wrap=True)
    for name in ("paper, millions", "ours, millions", "ours"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("same")
    for row in found:
        ours = (f"{row.trainable / 1e6:.2f}", f"{row.trainable:,}")
        table.add_row(row.recipe, row.paper, *ours, "yes" if row.agrees else "NO")
    return table


if __name__ == "__main__":
    sys.exit(main())
