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
        diagnostics.append(
            _bad_blocks(str(error), f"name blocks from 0 to {anatomy.count - 1}", key)
        )
        return ()
    except LookupError as error:
        known = ", ".join(sorted({word for kind in anatomy.kinds for word in kind.module_names()}))
        diagnostics.append(_bad_blocks(f"{error} in {anatomy.source}", f"name one of {known}", key))
        return ()
    if not blocks and operation.blocks != "none":
        what = f"`{operation.blocks}` picks none of the {anatomy.count} blocks of {anatomy.source}"
        diagnostics.append(_bad_blocks(what, "name a larger share, or `none`", key))
    return blocks


def _bad_blocks(what: str, fix: str, key: str) -> Diagnostic:
    return diagnostic("P202.bad_blocks", what=what, fix=fix, key=key)


def _refused(op: str, anatomy: Anatomy) -> Diagnostic:
    others = [word for word in known_operations() if word not in anatomy.refusals]
    return diagnostic(
        "P216",
        op=op,
        source=anatomy.source,
        model_type=anatomy.model_type,
        refusals=anatomy.refusals[op],
        others=", ".join(others),
        key="op",
    )
