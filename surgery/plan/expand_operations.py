"""Recipe x anatomy: the blocks that each operation picks, and its edits there."""

from collections.abc import Iterable
from dataclasses import replace

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.model.anatomy import Anatomy
from surgery.operations.base import Operation, known_operations
from surgery.operations.block_selector import is_rest, pick_blocks
from surgery.operations.edits import Edit
from surgery.recipe.schema import Recipe


def planned_edits(
    recipe: Recipe, anatomy: Anatomy, diagnostics: list[Diagnostic]
) -> Iterable[Edit]:
    """Yield the edits of every operation, in the recipe's order.

    Args:
        recipe: Recipe with the operations.
        anatomy: Anatomy of the base.
        diagnostics: List to which notes and errors are appended, with keys of the recipe.
    """
    blocks = _blocks(recipe, anatomy, diagnostics)
    for name, operation in recipe.operations.items():
        try:
            if operation.op in anatomy.refusals:
                raise SurgeryError(_refused(operation.op, anatomy))
            yield from operation.plan(name, anatomy, blocks[name])
            notes = operation.notes(anatomy, blocks[name])
            diagnostics += [replace(d, key=f"operations.{name}.{d.key}") for d in notes]
        except SurgeryError as error:
            prefix = f"operations.{name}"
            diagnostics += [replace(d, key=f"{prefix}.{d.key}") for d in error.diagnostics]


def _blocks(
    recipe: Recipe, anatomy: Anatomy, diagnostics: list[Diagnostic]
) -> dict[str, tuple[int, ...]]:
    """The blocks of each operation; `rest` is what no other operation picks."""
    picked: dict[str, tuple[int, ...]] = {}
    for name, operation in recipe.operations.items():
        if not is_rest(operation.blocks):
            picked[name] = _picked(name, operation, anatomy, diagnostics)
    taken = {block for blocks in picked.values() for block in blocks}
    for name, operation in recipe.operations.items():
        if name not in picked:
            among = _picked(name, operation, anatomy, diagnostics)
            picked[name] = tuple(block for block in among if block not in taken)
    return {name: picked[name] for name in recipe.operations}


def _picked(
    name: str, operation: Operation, anatomy: Anatomy, diagnostics: list[Diagnostic]
) -> tuple[int, ...]:
    """The blocks of one operation; for `rest`, all candidates."""
    key = f"operations.{name}.blocks"
    try:
        blocks = pick_blocks(operation.blocks, anatomy.count, anatomy.blocks_with)
    except IndexError as error:
        last = anatomy.count - 1
        diagnostics.append(diagnostic("P202.no_such_block", fault=error, last=last, key=key))
        return ()
    except LookupError as error:
        known = sorted({name for kind in anatomy.kinds for name in kind.module_names()})
        diagnostics.append(
            diagnostic(
                "P202.no_such_module", fault=error, source=anatomy.source, known=known, key=key
            )
        )
        return ()
    if not blocks and operation.blocks != "none":
        diagnostics.append(
            diagnostic(
                "P202.none_picked",
                blocks=operation.blocks,
                count=anatomy.count,
                source=anatomy.source,
                key=key,
            )
        )
    return blocks


def _refused(op: str, anatomy: Anatomy) -> Diagnostic:
    others = [word for word in known_operations() if word not in anatomy.refusals]
    return diagnostic(
        "P216",
        op=op,
        source=anatomy.source,
        model_type=anatomy.model_type,
        reason=anatomy.refusals[op],
        others=list(others),
        key="op",
    )
