"""A plan for a person: one row for each run of like blocks, and one last line."""

from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Final

from rich.table import Table
from rich.text import Text

from surgery.cli.views.plan.depth import depth_table
from surgery.cli.views.positions import in_ranges
from surgery.cli.views.terminal import out, plain_table, print_table
from surgery.diagnostics.wording import counted
from surgery.operations.edits import AddExpert, AddLearner, AddLora, Edit, SwapBlock
from surgery.plan.planner import Plan
from surgery.plan.summary import human_bytes, summary_line

_Row = tuple[str, str, str, int]
_MOST_ROWS: Final = 100


def print_plan(plan: Plan, adapter_bytes: int) -> None:
    """Print the table of blocks and the line that says what is added, trainable and frozen.

    Args:
        plan: what to show.
        adapter_bytes: size of its weight files.
    """
    name, model = (plan.recipe.name, "bold"), (plan.anatomy.source, "bold")
    out().print(Text.assemble(name, " on ", model), soft_wrap=True)
    print_table(depth_table(plan) if plan.changes_depth else _table(plan))
    _print_stages(plan)
    out().print(f"{summary_line(plan)} {human_bytes(adapter_bytes)} to write.", soft_wrap=True)


def print_written(plan: Plan, folder: Path) -> None:
    """Say what was written and what to do with it."""
    out().print(f"{summary_line(plan)}\nWrote {folder}", soft_wrap=True)
    out().print(f"  next: surgery verify {folder}", style="dim", soft_wrap=True)


def _table(plan: Plan) -> Table:
    columns = ("", "blocks", "change", "by", "parameters")
    table = plain_table(*columns, numbers=("parameters",), words=("change", "by"))
    for row, positions in _runs(_rows(plan)):
        table.add_row(*_cells(row, positions))
    for edit in plan.part_swaps():
        table.add_row(*_cells(("~", f"{edit.path} copied", edit.operation, edit.parameters), []))
    if plan.in_place:
        outside = len(plan.trains.base) - _in_blocks(plan)
        table.add_row(*_cells(("~", f"{outside} tensors outside the blocks train", "", 0), []))
    return table


def _cells(row: _Row, positions: list[int]) -> tuple[str | Text, ...]:
    mark, change, operation, parameters = row
    colour = {"+": "green", "~": "yellow", "-": "red"}.get(mark, "dim")
    each = " each" if len(positions) > 1 and parameters else ""
    count = f"{parameters:,}{each}" if parameters else ""
    return Text(mark, colour), in_ranges(positions), Text(change, colour), operation, count


def _runs(rows: list[_Row]) -> list[tuple[_Row, list[int]]]:
    """Neighbors that are alike, from top to bottom; all that are alike where that is too long."""
    together = [(row, [i for i, _ in run]) for row, run in groupby(enumerate(rows), itemgetter(1))]
    if len(together) <= _MOST_ROWS:
        return together
    alike: dict[_Row, list[int]] = {}
    for row, positions in together:
        alike.setdefault(row, []).extend(positions)
    return list(alike.items())


def _rows(plan: Plan) -> list[_Row]:
    whole = plan.anatomy.by_block(plan.anatomy.sizes)
    edits: dict[int, list[Edit]] = {}
    for edit in plan.edits:
        edits.setdefault(edit.block, []).append(edit)
    return [
        _row(edits.get(block, []), plan.trained_in[block], whole[block])
        for block in range(plan.anatomy.count)
    ]


def _row(edits: list[Edit], trained: int, whole: int) -> _Row:
    """The row of one block: what it gets, and how much of the whole trains in place."""
    operation = ", ".join(dict.fromkeys(edit.operation for edit in edits))
    added = sum(edit.parameters for edit in edits)
    if any(isinstance(edit, SwapBlock) for edit in edits):
        return "~", "copied, trained in full", operation, added
    deeds = _added(edits)
    untouched = _untouched(trained, whole)
    if not deeds:
        return untouched
    if untouched[0] == "~":
        return "~", ", ".join([*deeds, untouched[1]]), operation, added + untouched[3]
    return "+", ", ".join(deeds), operation, added


def _added(edits: list[Edit]) -> list[str]:
    """What is added to a block, in words."""
    deeds = []
    experts = [edit for edit in edits if isinstance(edit, AddExpert)]
    if experts:
        count = sum(len(edit.matrices) for edit in experts)
        deeds.append(f"experts on {counted(count, 'matrix', 'matrices')} ({experts[0].rule.form})")
    deeds += [f"learners rank {edit.rank}" for edit in edits if isinstance(edit, AddLearner)]
    loras = [edit for edit in edits if isinstance(edit, AddLora)]
    if loras:
        ranks = "/".join(str(rank) for rank in dict.fromkeys(edit.rank for edit in loras))
        deeds.append(f"LoRA rank {ranks} on {counted(len(loras), 'matrix', 'matrices')}")
    return deeds


def _untouched(trained: int, whole: int) -> _Row:
    if not trained:
        return " ", "frozen", "", 0
    return "~", "trained in place" if trained == whole else "trained in part", "", trained


def _in_blocks(plan: Plan) -> int:
    prefix = f"{plan.anatomy.blocks_path}."
    return sum(name.startswith(prefix) for name in plan.trains.base)


def _print_stages(plan: Plan) -> None:
    for stage in plan.stages:
        if stage.name:
            out().print(f"stage {stage.name}: {plan.trainable_in(stage):,} parameters train")
