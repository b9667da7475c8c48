"""A plan for a person: one row for each run of like blocks, and one last line."""

from itertools import groupby
from pathlib import Path

from rich.table import Table
from rich.text import Text

from surgery.edit import AddExpert, AddLearner, AddLora, Edit, SwapBlock
from surgery.plan import Plan
from surgery.reporters.depth_table import depth_table
from surgery.reporters.terminal import out, plain_table, print_table
from surgery.summary import human_bytes, summary_line

_Row = tuple[str, str, str, int]


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
    rows = [_row(plan, block) for block in range(plan.anatomy.count)]
    for row, run in groupby(enumerate(rows), key=lambda entry: entry[1]):
        positions = [position for position, _ in run]
        table.add_row(*_cells(row, positions))
    for edit in plan.part_swaps():
        table.add_row(*_cells(("~", f"{edit.path} copied", edit.operation, edit.parameters), []))
    if plan.in_place:
        outside = len(plan.trains.base) - _in_blocks(plan)
        table.add_row(*_cells(("~", f"{outside} tensors outside the blocks train", "", 0), []))
    return table


def _cells(row: _Row, positions: list[int]) -> tuple[str | Text, ...]:
    mark, change, operation, parameters = row
    where = (
        f"{positions[0]}-{positions[-1]}" if len(positions) > 1 else "".join(map(str, positions))
    )
    colour = {"+": "green", "~": "yellow", "-": "red"}.get(mark, "dim")
    each = " each" if len(positions) > 1 and parameters else ""
    count = f"{parameters:,}{each}" if parameters else ""
    return Text(mark, colour), where, Text(change, colour), operation, count


def _row(plan: Plan, block: int) -> _Row:
    edits = [edit for edit in plan.edits if edit.block == block]
    operation = ", ".join(dict.fromkeys(edit.operation for edit in edits))
    added = sum(edit.parameters for edit in edits)
    if any(isinstance(edit, SwapBlock) for edit in edits):
        return "~", "copied, trained in full", operation, added
    deeds = _added(edits)
    untouched = _untouched(plan, block)
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
        deeds.append(f"experts on {count} matrices ({experts[0].rule.form})")
    deeds += [f"learners rank {edit.rank}" for edit in edits if isinstance(edit, AddLearner)]
    loras = [edit for edit in edits if isinstance(edit, AddLora)]
    if loras:
        ranks = "/".join(str(rank) for rank in dict.fromkeys(edit.rank for edit in loras))
        deeds.append(f"LoRA rank {ranks} on {len(loras)} matrices")
    return deeds


def _untouched(plan: Plan, block: int) -> _Row:
    prefix = f"{plan.anatomy.block_path(block)}."
    count = sum(size for name, size in plan.anatomy.sizes.items() if name.startswith(prefix))
    trained = plan.trained_in(block)
    if not trained:
        return " ", "frozen", "", 0
    return "~", "trained in place" if trained == count else "trained in part", "", trained


def _in_blocks(plan: Plan) -> int:
    prefix = f"{plan.anatomy.blocks_path}."
    return sum(name.startswith(prefix) for name in plan.trains.base)


def _print_stages(plan: Plan) -> None:
    for stage in plan.stages:
        if stage.name:
            out().print(f"stage {stage.name}: {plan.trainable_in(stage):,} parameters train")
