"""What the multimodal path adds to each matrix, as a product B @ A.

LoRA is one already. A copy is its difference from the original: exact, times an identity on its
narrower side, or cut to a rank for runtimes that take no larger one.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from surgery.adapter.side_files import adapter_name
from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.model.anatomy import Matrix
from surgery.model.names.disk_names import DiskNames, read_disk_names
from surgery.plan.planner import Plan
from surgery.storage.file_names import ADAPTER_WEIGHTS
from surgery.storage.safetensors.header import StoredTensor, read_header
from surgery.storage.safetensors.lora_merge import fp32_values, streamed_values
from surgery.storage.safetensors.stream import streamed
from surgery.storage.safetensors.writer import NewTensor

Values = NDArray[np.float32]


@dataclass(frozen=True)
class Factors:
    """A product that is added to a matrix.

    Args:
        a: Array of shape (rank, inputs).
        b: Array of shape (outputs, rank), scaled.
        lost: Frobenius norm of what the rank cuts off, relative to that of all; 0 where exact.
    """

    a: Values
    b: Values
    lost: float = 0.0


@dataclass(frozen=True)
class Change:
    """The change of one matrix along the multimodal path.

    Args:
        path: Full name of the module.
        inputs: Input features.
        outputs: Output features.
        rank: Rank of the product.
        make: Computes the product.
    """

    path: str
    inputs: int
    outputs: int
    rank: int
    make: Callable[[], Factors]


def matrix_changes(
    plan: Plan, folder: Path, limit: int | None, *, instead: str, copies: bool = True
) -> list[Change]:
    """Return the change of every matrix; only what is no matrix is read, and compared.

    Args:
        plan: Plan of an adapter of copies and LoRA.
        folder: Path of the adapter folder.
        limit: Largest rank; None for exact products.
        instead: Option of an export that holds copies of norms, too.
        copies: Whether copies are among them; True by default.

    Raises:
        SurgeryError: A632 for DoRA, and where a copy changes anything but matrices; M201 to M208
            for the files.
    """
    if any(lora.is_dora for lora in plan.loras()):
        raise SurgeryError(diagnostic("A632.dora"))
    stored = read_header(folder / ADAPTER_WEIGHTS)
    changes = list(_differences(plan, stored, instead)) if copies else []
    changes += _pairs(plan, stored)
    return [_limited(change, limit or change.rank) for change in changes]


def latest_factors(changes: Sequence[Change], lost: dict[str, float]) -> Callable[[int], Factors]:
    """A function from an index to the product; the latest is kept, since A and B are read apart.

    Args:
        changes: As `matrix_changes`.
        lost: Filled with what each product loses, by the path of its module.
    """

    @lru_cache(maxsize=1)
    def factors(index: int) -> Factors:
        made = changes[index].make()
        if made.lost:
            lost[changes[index].path] = made.lost
        return made

    return factors


def cut(exact: Factors, rank: int) -> Factors:
    """The product of a smaller rank that is nearest to another, and what it loses.

    The leading singular vectors of the narrower side are eigenvectors of its Gram matrix, which
    takes less time and memory than a decomposition of the matrix.

    Args:
        exact: The other product.
        rank: Rank of the new one.
    """
    values = exact.b @ exact.a
    is_wide = values.shape[0] <= values.shape[1]
    narrow = (values if is_wide else values.T).astype(np.float64)
    kept = np.linalg.eigh(narrow @ narrow.T)[1][:, -rank:]
    projected = kept.T @ narrow
    whole = np.linalg.norm(narrow)
    lost = float(np.linalg.norm(narrow - kept @ projected) / whole) if whole else 0.0
    b, a = (kept, projected) if is_wide else (projected.T, kept.T)
    return Factors(a.astype(np.float32), b.astype(np.float32), lost)


def _limited(change: Change, limit: int) -> Change:
    if change.rank <= limit:
        return change
    return replace(change, rank=limit, make=lambda: cut(change.make(), limit))


def _pairs(plan: Plan, stored: Mapping[str, StoredTensor]) -> Iterator[Change]:
    for lora in plan.loras():
        a, b = (stored[adapter_name(tensor)] for tensor in lora.tensors[:2])

        def make(a: StoredTensor = a, b: StoredTensor = b, scale: float = lora.scale) -> Factors:
            return Factors(fp32_values(a), fp32_values(b) * np.float32(scale))

        yield Change(lora.path, a.shape[1], b.shape[0], lora.rank, make)


def _differences(plan: Plan, stored: Mapping[str, StoredTensor], instead: str) -> Iterator[Change]:
    """The changes of copied matrices.

    Raises:
        SurgeryError: As `matrix_changes`.
    """
    assert plan.files is not None
    read = partial(_base_values, read_disk_names(plan.files, plan.anatomy))
    for swap in plan.swaps():
        kind = plan.anatomy.block(swap.block)
        matrices = {f"{swap.path}.{m.name}.weight": m for m in kind.matrices if not m.apart}
        for tensor in swap.tensors:
            own, matrix = stored[adapter_name(tensor)], matrices.get(tensor.name)
            if matrix:
                yield _difference(matrix, own, tensor.name, read)
            elif not np.array_equal(fp32_values(own), read(tensor.name)):
                name, operation = tensor.name, swap.operation
                raise SurgeryError(
                    diagnostic("A632.vectors", name=name, operation=operation, instead=instead)
                )


def _difference(
    matrix: Matrix, own: StoredTensor, name: str, read: Callable[[str], Values]
) -> Change:
    rank = min(matrix.inputs, matrix.outputs)

    def make() -> Factors:
        difference = fp32_values(own) - read(name)
        values = difference.T if matrix.is_transposed else difference
        identity = np.eye(rank, dtype=np.float32)
        is_wide = matrix.outputs <= matrix.inputs
        return Factors(values, identity) if is_wide else Factors(identity, values)

    path = name.removesuffix(".weight")
    return Change(path, matrix.inputs, matrix.outputs, rank, make)


def _base_values(base: DiskNames, name: str) -> Values:
    origin = base.origin(name)
    assert origin is not None
    spec = (name, origin.dtype, origin.shape)
    return streamed_values(streamed(NewTensor(*spec, base.source(origin))))
