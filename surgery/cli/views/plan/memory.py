"""The memory that training takes, stage by stage."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from surgery.cli.views.terminal import out, plain_table, print_table
from surgery.plan.summary import human_bytes

if TYPE_CHECKING:
    from surgery.training.memory_estimate import Memory


def print_memory(stages: "Sequence[Memory]") -> None:
    """Print one row for each stage."""
    numbers = ("weights", "gradients", "AdamW", "in all")
    table = plain_table("stage", *numbers, numbers=numbers)
    for stage in stages:
        sizes = (stage.weights, stage.gradients, stage.optimizer, stage.total)
        table.add_row(stage.stage or "train", *map(human_bytes, sizes))
    print_table(table)
    out().print("Memory of training on one process, without activations.", style="dim")
