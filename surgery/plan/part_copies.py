"""Trained parts outside the decoder: copied, so that the base stays as it is.

Where the decoder trains in place as well, they train in place with it.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Final

from surgery.model.anatomy import Anatomy
from surgery.operations.edits import AddedTensor, DropBlock, Edit, InsertBlock, SwapPart
from surgery.plan.selection import Selection

_PARTS: Final = ("vision", "projector")


def part_copies(
    anatomy: Anatomy, edits: Sequence[Edit], chosen: Sequence[Selection]
) -> list[SwapPart]:
    """Return a copy of each module of vision tower and projector that trains in some stage.

    Args:
        anatomy: Anatomy of the base.
        edits: Edits of the operations.
        chosen: Selection of trained tensors of each stage.

    Returns:
        The copies; none where the decoder trains in place, changes its depth, or is quantized.
    """
    base = {name for selection in chosen for name in selection.base}
    outside = {name for part in _PARTS for name in anatomy.names_in(part)}
    deepened = any(isinstance(edit, InsertBlock | DropBlock) for edit in edits)
    if not base <= outside or deepened or anatomy.quantization:
        return []
    return [copy for part in _PARTS for copy in _copies(anatomy, part, base)]


def in_copies(selection: Selection, copies: Sequence[SwapPart]) -> Selection:
    """Replace the base's tensors in a selection by those of their copies.

    Args:
        selection: Selection of trained tensors of a stage.
        copies: Copies from `part_copies`.
    """
    owners = {tensor.name: copy.operation for copy in copies for tensor in copy.tensors}
    moved = {(owners[name], name) for name in selection.base if name in owners}
    return Selection(selection.base - owners.keys(), selection.added | moved)


def _copies(anatomy: Anatomy, part: str, trained: set[str]) -> Iterator[SwapPart]:
    names = anatomy.names_in(part)
    if trained.isdisjoint(names):
        return
    others = {t.name for t in anatomy.tensors()} - {*names}
    paths = dict.fromkeys(_outermost(name, others) for name in names if name in trained)
    for path in filter(None, paths):
        tensors = tuple(
            AddedTensor(t.name, t.shape, t.dtype, "copy", t.is_parameter)
            for t in anatomy.outside
            if t.name.startswith(f"{path}.")
        )
        yield SwapPart(part, "train", -1, path, tensors)


def _outermost(name: str, others: Collection[str]) -> str:
    """The outermost module around a tensor without any of the others in it; empty if none."""
    parts = name.split(".")
    paths = (".".join(parts[:end]) for end in range(1, len(parts)))
    return next((p for p in paths if not any(o.startswith(f"{p}.") for o in others)), "")
