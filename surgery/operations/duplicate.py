"""Copy complete blocks; the copies are trained and replace their block on the multimodal path."""

from collections.abc import Sequence
from typing import Literal

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic
from surgery.model.anatomy import Anatomy
from surgery.operations._quantization import refuse_quantized
from surgery.operations.base import Operation
from surgery.operations.edits import AddedTensor, Edit, SwapBlock


class Duplicate(Operation):
    """Copy each picked block, norms included, for the multimodal path; the original stays for text.

    Source: GenieBlue (arXiv 2503.06019), section 3.3.
    """

    op: Literal["duplicate"] = "duplicate"
    """Copy complete blocks and swap the copies in on the multimodal path."""

    def plan(self, name: str, anatomy: Anatomy, blocks: Sequence[int]) -> list[Edit]:
        """Return one edit for each block; see `Operation.plan`."""
        refuse_quantized(
            anatomy, "`duplicate` can't copy blocks", fix=", or use `lora` on the quantized one"
        )
        return [_swap(name, anatomy, block) for block in blocks]

    def notes(self, anatomy: Anatomy, blocks: Sequence[int]) -> list[Diagnostic]:
        """Note the copies whose parameters are shared in the base; see `Operation.notes`."""
        sharing = anatomy.sharing()
        shared = [block for block in blocks if block in {*sharing, *sharing.values()}]
        return (
            [diagnostic("P222", blocks=list(map(str, shared)), source=anatomy.source, key="blocks")]
            if shared
            else []
        )


def _swap(name: str, anatomy: Anatomy, block: int) -> SwapBlock:
    path = anatomy.block_path(block)
    tensors = tuple(
        AddedTensor(name, t.shape, t.dtype, "copy", t.is_parameter, anatomy.tied.get(name, ""))
        for t in anatomy.block(block).tensors
        for name in (f"{path}.{t.name}",)
    )
    return SwapBlock(name, "duplicate", block, path, tensors)
