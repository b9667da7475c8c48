"""Remove blocks from the depth."""

from collections.abc import Sequence
from typing import Literal

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.model.anatomy import Anatomy
from surgery.operations.base import Operation
from surgery.operations.edits import DropBlock, Edit


class Drop(Operation):
    """Remove the picked blocks; the result is written as a plain checkpoint.

    Source: ShortGPT (arXiv 2403.03853), section 3.
    """

    op: Literal["drop"] = "drop"
    """Remove blocks."""

    def plan(self, name: str, anatomy: Anatomy, blocks: Sequence[int]) -> list[Edit]:
        """Return one edit for each block; see `Operation.plan`."""
        if len(blocks) == anatomy.count:
            raise SurgeryError(
                diagnostic(
                    "P202.all_dropped", count=anatomy.count, source=anatomy.source, key="blocks"
                )
            )
        attentive = set(anatomy.blocks_with("attention"))
        if attentive and attentive <= set(blocks):
            raise SurgeryError(diagnostic("P202.no_attention", source=anatomy.source, key="blocks"))
        return [
            DropBlock(
                operation=name,
                op="drop",
                block=block,
                path=anatomy.block_path(block),
                tensors=(),
                removed=anatomy.block(block).parameters,
            )
            for block in blocks
        ]
