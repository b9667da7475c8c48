"""Merge LoRA into its matrix, W + scale * B @ A, a few rows at a time.

Each value is computed in fp32 and rounded once, to nearest, to the dtype of the stored matrix, as
PEFT 0.21 does it with LoRA in fp32. Only a few rows are in memory.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from surgery.storage.safetensors.dtypes import numpy_type
from surgery.storage.safetensors.header import StoredTensor, read_errors, truncated
from surgery.storage.safetensors.stream import STREAM_CHUNK_BYTES, Streamed

_ELEMENTS: Final = 1 << 15
"""Values of a tile, which fits the L2 cache. Up to twice as many cost the same (measured)."""

Read = Callable[[int, int], bytes]
"""From an offset and a length, in bytes, to the bytes there."""


@dataclass(frozen=True)
class LowRank:
    """The low-rank update of a matrix as it is stored.

    Args:
        left: fp32 array of shape (rows of the stored matrix, rank), scaled.
        right: fp32 array of shape (rank, columns of the stored matrix).
    """

    left: NDArray[np.float32]
    right: NDArray[np.float32]


def low_rank(
    a: NDArray[np.float32], b: NDArray[np.float32], scale: float, *, is_transposed: bool
) -> LowRank:
    """Arrange a LoRA pair so that left @ right has the shape of the stored matrix.

    Args:
        a: LoRA A of shape (rank, inputs).
        b: LoRA B of shape (outputs, rank).
        scale: Scale of the pair, usually alpha / rank.
        is_transposed: Whether the matrix is stored as (inputs, outputs), as GPT-2's Conv1D.
    """
    left, right = (a.T, b.T) if is_transposed else (b, a)
    return LowRank(np.ascontiguousarray(left * np.float32(scale)), np.ascontiguousarray(right))


def merged(read: Read, dtype: str, make: Callable[[], LowRank]) -> Iterator[bytes]:
    """Yield the bytes of a matrix with LoRA merged into it.

    Args:
        read: Reads the bytes of the stored matrix, row-major.
        dtype: F32, F16 or BF16.
        make: Returns the update; called when the first byte is needed.
    """
    pair, stored_as = make(), numpy_type(dtype)
    rows, columns = pair.left.shape[0], pair.right.shape[1]
    width = columns * stored_as.itemsize
    tile, chunk = max(1, _ELEMENTS // columns), max(1, STREAM_CHUNK_BYTES // width)
    for first in range(0, rows, chunk):
        last = min(rows, first + chunk)
        raw = bytearray(read(first * width, (last - first) * width))
        values = np.frombuffer(raw, stored_as).reshape(last - first, columns)
        for row in range(0, last - first, tile):
            part = values[row : row + tile]
            left = pair.left[first + row : first + row + len(part)]
            part[...] = left @ pair.right + part.astype(np.float32)
        yield bytes(raw)


def reader(tensor: StoredTensor) -> Read:
    """Read ranges of a stored tensor.

    Raises:
        SurgeryError: When it is called: M204 where the file ends early, M201 or M207 where it can't
            be read.
    """

    def read(offset: int, nbytes: int) -> bytes:
        with read_errors(tensor.file), tensor.file.open("rb", buffering=0) as stream:
            content = os.pread(stream.fileno(), nbytes, tensor.offset + offset)
        if len(content) < nbytes:
            raise truncated(tensor.file, f"it ends {nbytes - len(content):,} bytes early")
        return content

    return read


def reader_of(make: Callable[[], bytes]) -> Read:
    """Read ranges of bytes that are computed at the first call and stay in memory."""
    made: list[bytes] = []

    def read(offset: int, nbytes: int) -> bytes:
        made.extend([] if made else [make()])
        return made[0][offset : offset + nbytes]

    return read


def fp32_values(tensor: StoredTensor) -> NDArray[np.float32]:
    """The values of a small stored tensor in fp32.

    Raises:
        SurgeryError: As `reader`.
    """
    return _in_fp32(reader(tensor)(0, tensor.nbytes), tensor.dtype, tensor.shape)


def streamed_values(tensor: Streamed) -> NDArray[np.float32]:
    """The values of a tensor to write, in fp32; all of it is in memory.

    Raises:
        SurgeryError: As `stored_chunks`.
    """
    _, dtype, shape = tensor.spec
    return _in_fp32(b"".join(tensor.chunks()), dtype, shape)


def _in_fp32(content: bytes, dtype: str, shape: Sequence[int]) -> NDArray[np.float32]:
    return np.frombuffer(content, numpy_type(dtype)).reshape(shape).astype(np.float32)


def cast(chunks: Iterator[bytes], dtype: str, wanted: str) -> Iterator[bytes]:
    """Cast values to another dtype chunk by chunk, rounding to nearest.

    Args:
        chunks: Bytes of whole values of `dtype`.
        dtype: F32, F16 or BF16.
        wanted: F32, F16 or BF16.
    """
    source_type, stored_as = numpy_type(dtype), numpy_type(wanted)
    for chunk in chunks:
        yield np.frombuffer(chunk, source_type).astype(np.float32).astype(stored_as).tobytes()
