"""The order of blocks after a plan's inserted and dropped ones.

A block of the new depth is identified by its source block in the base; the edits' tensors have the
base's names, and only here do they get their new indices.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from surgery.model.anatomy import Anatomy
from surgery.operations.edits import DropBlock, Edit, InsertBlock


@dataclass(frozen=True, slots=True)
class Slot:
    """One block of the new depth.

    Args:
        source: Index in the base of the block that it is, or is a copy of.
        insert: The edit that adds it; None for the base's own.
    """

    source: int
    insert: InsertBlock | None = None

    @property
    def zeros(self) -> frozenset[str]:
        """Names in the base of the tensors that are zero, in a copy that starts as identity."""
        added = self.insert.tensors if self.insert else ()
        return frozenset(tensor.name for tensor in added if tensor.start == "zeros")


def new_depth(edits: Iterable[Edit], count: int) -> tuple[Slot, ...]:
    """Return the blocks in their new order.

    Args:
        edits: All edits of a plan.
        count: Number of blocks of the base.
    """
    edits = list(edits)
    dropped = {edit.block for edit in edits if isinstance(edit, DropBlock)}
    added_after: dict[int, list[Slot]] = {}
    for edit in edits:
        if isinstance(edit, InsertBlock):
            added_after.setdefault(edit.after, []).append(Slot(edit.block, edit))
    slots: list[Slot] = []
    for block in range(count):
        slots += [Slot(block)] if block not in dropped else []
        slots += added_after.get(block, [])
    return tuple(slots)


def new_anatomy(anatomy: Anatomy, slots: Iterable[Slot]) -> Anatomy:
    """Return the anatomy of the model with the new depth.

    Args:
        anatomy: Anatomy of the base.
        slots: The new depth.
    """
    fields = {name: getattr(anatomy, name) for name in Anatomy.model_fields}
    return Anatomy(**{**fields, "sequence": [anatomy.sequence[slot.source] for slot in slots]})


def new_names(slots: Sequence[Slot], blocks_path: str) -> Iterator[tuple[Slot, str, str]]:
    """Yield, for each block of the new depth, the name prefix of its source and its own.

    Args:
        slots: The new depth.
        blocks_path: Module name of the list of blocks, such as `model.layers`.
    """
    for position, slot in enumerate(slots):
        yield slot, f"{blocks_path}.{slot.source}.", f"{blocks_path}.{position}."


def sources_of(slots: Sequence[Slot]) -> tuple[int, ...]:
    """For each block of a depth, the index of its source in the base."""
    return tuple(slot.source for slot in slots)
