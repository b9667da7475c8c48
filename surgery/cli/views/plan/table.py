"""A plan on the terminal."""

from pathlib import Path
from typing import Final

from rich.table import Table
from rich.text import Text

from surgery.cli.views.terminal import out, plain_table, print_table
from surgery.diagnostics.text_table import TextTable
from surgery.plan.planner import Plan
from surgery.plan.summary import human_bytes, summary_line
from surgery.plan.table import plan_table, stage_lines

_COLORS: Final = {"+": "green", "~": "yellow", "-": "red"}


def print_plan(plan: Plan, adapter_bytes: int) -> None:
    """Print the table of blocks and the line that says what is added, trainable and frozen.

    Args:
        plan: Plan.
        adapter_bytes: Size of its weight files.
    """
    name, model = (plan.recipe.name, "bold"), (plan.anatomy.source, "bold")
    out().print(Text.assemble(name, " on ", model), soft_wrap=True)
    print_table(_colored(plan_table(plan)))
    for line in stage_lines(plan):
        out().print(line)
    out().print(f"{summary_line(plan)} {human_bytes(adapter_bytes)} to write.", soft_wrap=True)


def print_written(plan: Plan, folder: Path) -> None:
    """Say what was written and what to do with it."""
    out().print(f"{summary_line(plan)}\nWrote {folder}", soft_wrap=True)
    out().print(f"  next: surgery verify {folder}", style="dim", soft_wrap=True)


def _colored(table: TextTable) -> Table:
    """The first cell and the change of each row in the color of its mark."""
    drawn = plain_table(*table.columns, numbers=table.numbers, words=("change", "by"))
    for row in table.rows:
        color = _COLORS.get(row[0], "dim")
        colored = {0, table.columns.index("change")}
        drawn.add_row(*(Text(c, color) if n in colored else c for n, c in enumerate(row)))
    return drawn
