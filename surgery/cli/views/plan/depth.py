"""A new depth for a person: one row for each run of blocks that are kept, copied or dropped."""

from collections.abc import Iterator
from itertools import groupby

from rich.table import Table
from rich.text import Text

from surgery.cli.views.terminal import plain_table
from surgery.operations.edits import DropBlock
from surgery.plan.planner import Plan

_COLORS = {"+": "green", "-": "red", "~": "yellow"}


def depth_table(plan: Plan) -> Table:
    """Return the blocks in their new order, with the block of the base that each comes from."""
    columns = ("", "blocks", "from", "change", "by", "parameters")
    table = plain_table(*columns, numbers=("parameters",), words=("change", "by"))
    for cells in (*_runs(plan), *_dropped(plan)):
        color = _COLORS.get(cells[0], "dim")
        table.add_row(Text(cells[0], color), *cells[1:3], Text(cells[3], color), *cells[4:])
    return table


def _runs(plan: Plan) -> Iterator[tuple[str, ...]]:
    rows = [_row(plan, position) for position in range(len(plan.depth))]
    for (_, row), run in groupby(
        enumerate(rows), key=lambda e: (plan.depth[e[0]].source - e[0], e[1])
    ):
        positions = [position for position, _ in run]
        mark, change, operation, parameters = row
        sources = [plan.depth[position].source for position in positions]
        each = " each" if len(positions) > 1 and parameters else ""
        count = f"{parameters:,}{each}" if parameters else ""
        yield mark, _range(positions), _range(sources), change, operation, count


def _row(plan: Plan, position: int) -> tuple[str, str, str, int]:
    slot = plan.depth[position]
    if slot.insert:
        start = "copy" if slot.insert.start == "copy" else "copy, starts as an identity"
        return "+", start, slot.insert.operation, slot.insert.parameters
    trained = plan.trained_in[slot.source]
    return ("~", "kept, trained", "", trained) if trained else (" ", "kept, frozen", "", 0)


def _dropped(plan: Plan) -> Iterator[tuple[str, ...]]:
    for edit in plan.edits:
        if isinstance(edit, DropBlock):
            yield "-", "", str(edit.block), "dropped", edit.operation, f"{edit.removed:,}"


def _range(positions: list[int]) -> str:
    first, last = positions[0], positions[-1]
    return f"{first}-{last}" if last > first else str(first)
