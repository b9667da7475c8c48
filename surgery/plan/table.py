"""A plan for a person: one row for each run of identical blocks, the stages, and one last line."""

from collections.abc import Iterator
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Final

from surgery.diagnostics.positions import in_ranges
from surgery.diagnostics.text_table import TextTable
from surgery.diagnostics.wording import counted
from surgery.operations.edits import AddExpert, AddLearner, AddLora, DropBlock, Edit, SwapBlock

if TYPE_CHECKING:
    from surgery.plan.planner import Plan

_Row = tuple[str, str, str, int]
_MOST_ROWS: Final = 100
_NUMBERS: Final = frozenset(("parameters",))


def plan_title(plan: "Plan") -> str:
    """The line before the table."""
    return f"{plan.recipe.name} on {plan.anatomy.source}"


def plan_table(plan: "Plan") -> TextTable:
    """The blocks with what changes in them; the first cell of a row is `+`, `~`, `-` or a space.

    A plan of another depth has the blocks in their new order, with the block of the base that each
    comes from.
    """
    if plan.changes_depth:
        rows = [*_depth_runs(plan), *_dropped_rows(plan)]
        return TextTable(("", "blocks", "from", "change", "by", "parameters"), rows, _NUMBERS)
    rows = [_cells(*found) for found in _all_rows(plan)]
    return TextTable(("", "blocks", "change", "by", "parameters"), rows, _NUMBERS)


def stage_lines(plan: "Plan") -> list[str]:
    """A line for each named stage: how many parameters train."""
    return [
        f"stage {stage.name}: {plan.trainable_in(stage):,} parameters train"
        for stage in plan.stages
        if stage.name
    ]


def _all_rows(plan: "Plan") -> Iterator[tuple[_Row, list[int]]]:
    yield from _runs(_rows(plan))
    for edit in plan.part_swaps():
        yield ("~", f"{edit.path} copied", edit.operation, edit.parameters), []
    if plan.in_place:
        outside = len(plan.trains.base) - _in_blocks(plan)
        yield ("~", f"{outside} tensors outside the blocks train", "", 0), []


def _cells(row: _Row, positions: list[int]) -> tuple[str, ...]:
    mark, change, operation, parameters = row
    each = " each" if len(positions) > 1 and parameters else ""
    count = f"{parameters:,}{each}" if parameters else ""
    return mark, in_ranges(positions), change, operation, count


def _runs(rows: list[_Row]) -> list[tuple[_Row, list[int]]]:
    """Identical neighbors, from top to bottom; of too many, all identical rows together."""
    together = [(row, [i for i, _ in run]) for row, run in groupby(enumerate(rows), itemgetter(1))]
    if len(together) <= _MOST_ROWS:
        return together
    identical: dict[_Row, list[int]] = {}
    for row, positions in together:
        identical.setdefault(row, []).extend(positions)
    return list(identical.items())


def _rows(plan: "Plan") -> list[_Row]:
    whole = plan.anatomy.by_block(plan.anatomy.sizes)
    edits: dict[int, list[Edit]] = {}
    for edit in plan.edits:
        edits.setdefault(edit.block, []).append(edit)
    return [
        _row(edits.get(block, []), plan.trained_in[block], whole[block])
        for block in range(plan.anatomy.count)
    ]


def _row(edits: list[Edit], trained: int, whole: int) -> _Row:
    """The row of one block: what it gets, and how much of it trains in place."""
    operation = ", ".join(dict.fromkeys(edit.operation for edit in edits))
    added = sum(edit.parameters for edit in edits)
    if any(isinstance(edit, SwapBlock) for edit in edits):
        return "~", "copied, trained in full", operation, added
    changes = _added(edits)
    untouched = _untouched(trained, whole)
    if not changes:
        return untouched
    if untouched[0] == "~":
        return "~", ", ".join([*changes, untouched[1]]), operation, added + untouched[3]
    return "+", ", ".join(changes), operation, added


def _added(edits: list[Edit]) -> list[str]:
    """What is added to a block, in words."""
    parts = []
    experts = [edit for edit in edits if isinstance(edit, AddExpert)]
    if experts:
        count = sum(len(edit.matrices) for edit in experts)
        parts.append(f"experts on {counted(count, 'matrix', 'matrices')} ({experts[0].rule.form})")
    parts += [f"learners rank {edit.rank}" for edit in edits if isinstance(edit, AddLearner)]
    loras = [edit for edit in edits if isinstance(edit, AddLora)]
    if loras:
        ranks = "/".join(str(rank) for rank in dict.fromkeys(edit.rank for edit in loras))
        parts.append(f"LoRA rank {ranks} on {counted(len(loras), 'matrix', 'matrices')}")
    return parts


def _untouched(trained: int, whole: int) -> _Row:
    if not trained:
        return " ", "frozen", "", 0
    return "~", "trained in place" if trained == whole else "trained in part", "", trained


def _in_blocks(plan: "Plan") -> int:
    prefix = f"{plan.anatomy.blocks_path}."
    return sum(name.startswith(prefix) for name in plan.trains.base)


def _depth_runs(plan: "Plan") -> Iterator[tuple[str, ...]]:
    rows = [_depth_row(plan, position) for position in range(len(plan.depth))]
    for (_, row), run in groupby(
        enumerate(rows), key=lambda e: (plan.depth[e[0]].source - e[0], e[1])
    ):
        positions = [position for position, _ in run]
        mark, change, operation, parameters = row
        sources = [plan.depth[position].source for position in positions]
        each = " each" if len(positions) > 1 and parameters else ""
        count = f"{parameters:,}{each}" if parameters else ""
        yield mark, _range(positions), _range(sources), change, operation, count


def _depth_row(plan: "Plan", position: int) -> tuple[str, str, str, int]:
    slot = plan.depth[position]
    if slot.insert:
        start = "copy" if slot.insert.start == "copy" else "copy, starts as an identity"
        return "+", start, slot.insert.operation, slot.insert.parameters
    trained = plan.trained_in[slot.source]
    return ("~", "kept, trained", "", trained) if trained else (" ", "kept, frozen", "", 0)


def _dropped_rows(plan: "Plan") -> Iterator[tuple[str, ...]]:
    for edit in plan.edits:
        if isinstance(edit, DropBlock):
            yield "-", "", str(edit.block), "dropped", edit.operation, f"{edit.removed:,}"


def _range(positions: list[int]) -> str:
    first, last = positions[0], positions[-1]
    return f"{first}-{last}" if last > first else str(first)
