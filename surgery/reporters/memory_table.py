"""The memory that training takes, stage by stage."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from surgery.reporters.terminal import out
from surgery.summary import human_bytes

if TYPE_CHECKING:
    from surgery.memory import Memory


def print_memory(stages: "Sequence[Memory]") -> None:
    """Print one row for each stage."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("stage", "weights", "gradients", "AdamW", "in all"):
        table.add_column(name, justify="left" if name == "stage" else "right", no_wrap=True)
    for stage in stages:
        sizes = (stage.weights, stage.gradients, stage.optimizer, stage.total)
        table.add_row(escape(stage.stage) or "train", *map(human_bytes, sizes))
    out().print(table)
    out().print("Memory of training on one process, without activations.", style="dim")
