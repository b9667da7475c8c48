"""Copy complete blocks; the copies are trained and replace their block on the multimodal path."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer

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

    norms: Literal["trained", "frozen"] = "trained"
    """frozen: of a copy only its matrices train, norms and biases stay the base's, so that a LoRA
    (`--to peft-lora`) or an adapter of llama.cpp (`--to gguf`) can hold the difference."""

    @model_serializer(mode="wrap")
    def _dumped(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without `norms` where they train, so that plans of versions without it stay the same."""
        content: dict[str, Any] = dump(self)
        return {k: x for k, x in content.items() if k != "norms" or self.norms == "frozen"}

    def plan(self, name: str, anatomy: Anatomy, blocks: Sequence[int]) -> list[Edit]:
        """Return one edit for each block; see `Operation.plan`."""
        refuse_quantized(
            anatomy, "`duplicate` can't copy blocks", fix=", or use `lora` on the quantized one"
        )
        return [self._swap(name, anatomy, block) for block in blocks]

    def notes(self, anatomy: Anatomy, blocks: Sequence[int]) -> list[Diagnostic]:
        """Note the copies whose parameters are shared in the base; see `Operation.notes`."""
        sharing = anatomy.sharing()
        shared = [block for block in blocks if block in {*sharing, *sharing.values()}]
        return (
            [diagnostic("P222", blocks=list(map(str, shared)), source=anatomy.source, key="blocks")]
            if shared
            else []
        )

    def _swap(self, name: str, anatomy: Anatomy, block: int) -> SwapBlock:
        path, kind = anatomy.block_path(block), anatomy.block(block)
        matrices = {f"{matrix.name}.weight" for matrix in kind.matrices if not matrix.apart}
        tensors = (
            AddedTensor(
                *(f"{path}.{t.name}", t.shape, t.dtype, "copy", t.is_parameter),
                source=anatomy.tied.get(f"{path}.{t.name}", ""),
                is_frozen=self.norms == "frozen" and t.name not in matrices,
            )
            for t in kind.tensors
        )
        return SwapBlock(name, "duplicate", block, path, tuple(tensors))
