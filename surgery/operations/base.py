"""The base of operations: a named intent in a recipe that turns an anatomy into edits.

A module in `surgery/operations/` defines one subclass; nothing else has to know of it.
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
    """A frozen model that takes exactly the keys and types it names."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )


class Operation(Strict, ABC):
    """What every operation has: the word `op` that picks it, and the blocks it acts on."""

    op: str
    """Which operation this is."""

    blocks: Blocks
    """The blocks: all, none, rest, pre n/d, post n/d, skip n/d, every k, every k from j, i-j,
    or positions such as [0, 5, -1]. `of WORD` behind any of the words leaves those that have such
    matrices: skip 1/4 of attention."""

    @property
    def companions(self) -> tuple[str, ...]:
        """Parts of the base that train in place wherever `train` names the operation."""
        return ()

    def notes(self, anatomy: Anatomy, blocks: Sequence[int]) -> list[Diagnostic]:
        """Return what a plan says beside the edits: notes, whose `key` is relative to this.

        Args:
            anatomy: the model.
            blocks: the picked positions, ascending.
        """
        return []

    @abstractmethod
    def plan(self, name: str, anatomy: Anatomy, blocks: Sequence[int]) -> list[Edit]:
        """Return the edits that this operation means on one model.

        Args:
            name: what the recipe calls the operation.
            anatomy: the model.
            blocks: the picked positions, ascending.

        Raises:
            SurgeryError: where the model can't take it; a diagnostic's `key` is relative to
                this operation, such as `modules`.
        """


def known_operations() -> dict[str, type[Operation]]:
    """Every operation by its word, found in the folder `surgery/operations`."""
    classes = classes_in("surgery.operations", Operation)  # type: ignore[type-abstract]
    return {cls.model_fields["op"].default: cls for cls in classes}
