"""Low-rank adapters on the matrices of blocks."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.model.anatomy import Anatomy, Matrix
from surgery.operations._module_names import left_out, refuse_unknown
from surgery.operations.base import Operation, Strict
from surgery.operations.edits import AddedTensor, AddLora, Edit


class PeftOptions(Strict):
    """Further fields of PEFT's LoraConfig, under PEFT's own names."""

    lora_dropout: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.0
    """Probability of dropping an input of A while training."""

    use_rslora: bool = False
    """Scale by alpha / sqrt(rank) instead of alpha / rank (arXiv 2312.03732)."""

    use_dora: bool = False
    """Learn a magnitude for each output too (arXiv 2402.09353); only when applied in memory."""

    init_lora_weights: bool | Literal["gaussian", "pissa", "olora", "orthogonal"] = True
    """Initialization of A and B. true: Kaiming-uniform A and zero B; the others only work when
    applied in memory."""

    def changed(self) -> tuple[tuple[str, object], ...]:
        """The options that differ from PEFT's defaults, sorted by name."""
        return tuple(sorted(self.model_dump(exclude_defaults=True).items()))


class Lora(Operation):
    """Add LoRA to each named matrix of the picked blocks (arXiv 2106.09685).

    A is Kaiming-uniform from a generator that is seeded by the recipe's seed and the module's name,
    B is zero, both are fp32. Source of the defaults: GenieBlue, section 3.2, footnote 2.
    """

    op: Literal["lora"] = "lora"
    """Add low-rank adapters to matrices."""

    modules: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = ("attention", "mlp")
    """Which matrices: attention, mlp, mixer, or one role such as q, k, v, o, gate, up, down.
    Routers only by their role; experts that are stacked in one parameter get none."""

    rank: Annotated[int, Field(ge=1)] = 8
    """Rank of A and B."""

    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Numerator of the scale alpha / rank; 2 x rank unless given (the paper doesn't state it)."""

    peft: PeftOptions = PeftOptions()
    """Further fields of PEFT's LoraConfig."""

    def plan(self, name: str, anatomy: Anatomy, blocks: Sequence[int]) -> list[Edit]:
        """Return one edit for each matrix; see `Operation.plan`."""
        refuse_unknown(self.modules, anatomy, blocks)
        chosen = [
            (block, matrix)
            for block in blocks
            for matrix in anatomy.block(block).matrices
            if matrix.takes_lora(self.modules)
        ]
        too_small = [m for _, m in chosen if min(m.inputs, m.outputs) < self.rank]
        if too_small:
            raise SurgeryError(_rank_too_large(self.rank, too_small[0]))
        return [self._pair(name, anatomy.block_path(block), block, m) for block, m in chosen]

    def notes(self, anatomy: Anatomy, blocks: Sequence[int]) -> list[Diagnostic]:
        """Note the matrices that are left out, and why; see `Operation.notes`."""
        return left_out(self.modules, anatomy, blocks)

    def _pair(self, name: str, path: str, block: int, matrix: Matrix) -> AddLora:
        target = f"{path}.{matrix.name}"
        from_weights = self.peft.use_dora or self.peft.init_lora_weights is not True
        tensors = [
            AddedTensor(
                f"{target}.lora_A.weight",
                (self.rank, matrix.inputs),
                "F32",
                "weights" if from_weights else "kaiming",
            ),
            AddedTensor(
                f"{target}.lora_B.weight",
                (matrix.outputs, self.rank),
                "F32",
                "weights" if from_weights else "zeros",
            ),
        ]
        if self.peft.use_dora:
            magnitude = f"{target}.lora_magnitude_vector"
            tensors.append(AddedTensor(magnitude, (matrix.outputs,), "F32", "weights"))
        alpha = 2.0 * self.rank if self.alpha is None else self.alpha
        options = self.peft.changed()
        return AddLora(name, "lora", block, target, tuple(tensors), self.rank, alpha, options)


def _rank_too_large(rank: int, matrix: Matrix) -> Diagnostic:
    return diagnostic(
        "P208.matrix",
        rank=rank,
        name=matrix.name,
        outputs=matrix.outputs,
        inputs=matrix.inputs,
        limit=min(matrix.inputs, matrix.outputs),
        key="rank",
    )
