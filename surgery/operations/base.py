"""The base class of operations, which turn an anatomy into edits.

A module in `surgery/operations/` defines one subclass, which is found by its folder.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from surgery.diagnostics.diagnostic import Diagnostic
from surgery.model.anatomy import Anatomy
from surgery.operations.block_selector import Blocks
from surgery.operations.edits import Edit
from surgery.plugins import classes_in


class Strict(BaseModel):
    """A frozen pydantic model that takes exactly the keys and types of its fields."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )


class Operation(Strict, ABC):
    """The fields of every operation: its name `op`, and the blocks that it changes."""

    op: str
    """Which operation this is."""

    blocks: Blocks
    """The blocks: all, none, rest, pre n/d, post n/d, skip n/d, every k, every k from j, i-j,
    or indices such as [0, 5, -1]. `of NAME` after any but the indices keeps the blocks that have
    such matrices: skip 1/4 of attention."""

    @property
    def companions(self) -> tuple[str, ...]:
        """Parts of the base that train in place where `train` names the operation."""
        return ()

    def notes(self, anatomy: Anatomy, blocks: Sequence[int]) -> list[Diagnostic]:
        """Return notes for the plan, whose `key` is relative to this operation.

        Args:
            anatomy: Anatomy of the base.
            blocks: Indices of the picked blocks, ascending.
        """
        return []

    @abstractmethod
    def plan(self, name: str, anatomy: Anatomy, blocks: Sequence[int]) -> list[Edit]:
        """Return the edits of this operation on one model.

        Args:
            name: Name of the operation in the recipe.
            anatomy: Anatomy of the base.
            blocks: Indices of the picked blocks, ascending.

        Raises:
            SurgeryError: Where the model doesn't support it; a diagnostic's `key` is relative to
                this operation, such as `modules`.
        """


def known_operations() -> dict[str, type[Operation]]:
    """Every operation by its name `op`, found in the folder `surgery/operations`."""
    classes = classes_in("surgery.operations", Operation)  # type: ignore[type-abstract]
    return {cls.model_fields["op"].default: cls for cls in classes}
