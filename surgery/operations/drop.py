"""Remove blocks from the depth."""

from collections.abc import Sequence
from typing import Literal

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
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
            raise SurgeryError(_nothing_left(anatomy))
        attentive = set(anatomy.blocks_with("attention"))
        if attentive and attentive <= set(blocks):
            raise SurgeryError(_no_attention_left(anatomy))
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


def _nothing_left(anatomy: Anatomy) -> Diagnostic:
    return diagnostic("P202.nothing_left", count=anatomy.count, source=anatomy.source, key="blocks")


def _no_attention_left(anatomy: Anatomy) -> Diagnostic:
    return diagnostic("P202.no_attention_left", source=anatomy.source, key="blocks")
