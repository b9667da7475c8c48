"""A LoRA merged into its matrix: W + scale * B @ A, a few rows at a time.

Each number is computed in fp32 and rounded once, to nearest, to the type that the matrix is stored
in, as PEFT 0.21 does it with LoRA in fp32. Nothing but a few rows is in memory.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from surgery.storage.safetensors.dtypes import numpy_type
from surgery.storage.safetensors.header import StoredTensor, read_errors, truncated
from surgery.storage.safetensors.stream import STREAM_CHUNK_BYTES

_ELEMENTS: Final = 1 << 15
"""Of a tile: it lies in the second-level cache. Up to twice as many cost the same (measured)."""

Read = Callable[[int, int], bytes]
"""Reads so many bytes from an offset."""


@dataclass(frozen=True)
class LowRank:
    """What is added to a matrix as it is stored.

    Args:
        left: (rows of the stored matrix, rank), fp32, with the scale in it.
        right: (rank, columns of the stored matrix), fp32.
    """

    left: NDArray[np.float32]
    right: NDArray[np.float32]


def low_rank(
    a: NDArray[np.float32], b: NDArray[np.float32], scale: float, *, is_transposed: bool
) -> LowRank:
    """Turn a pair so that left @ right has the shape of the stored matrix.

    Args:
        a: (rank, inputs).
        b: (outputs, rank).
        scale: that of the pair, alpha / rank as a rule.
        is_transposed: whether the matrix is stored as (inputs, outputs), GPT-2's Conv1D.
    """
    left, right = (a.T, b.T) if is_transposed else (b, a)
    return LowRank(np.ascontiguousarray(left * np.float32(scale)), np.ascontiguousarray(right))


def merged(read: Read, dtype: str, make: Callable[[], LowRank]) -> Iterator[bytes]:
    """Yield the bytes of a matrix with a pair added to it.

    Args:
        read: the matrix's bytes as they are stored, row-major.
        dtype: F32, F16 or BF16.
        make: returns the pair, when its turn has come.
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
        SurgeryError: when it is called; M204 where the file ends early, M201 or M207 where it can't
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
    """Read ranges of bytes that are made at the first call and then held."""
    made: list[bytes] = []

    def read(offset: int, nbytes: int) -> bytes:
        made.extend([] if made else [make()])
        return made[0][offset : offset + nbytes]

    return read


def fp32_values(tensor: StoredTensor) -> NDArray[np.float32]:
    """The numbers of a small stored tensor in fp32.

    Raises:
        SurgeryError: as `reader`.
    """
    content = reader(tensor)(0, tensor.nbytes)
    values = np.frombuffer(content, numpy_type(tensor.dtype)).reshape(tensor.shape)
    return values.astype(np.float32)


def cast(chunks: Iterator[bytes], dtype: str, wanted: str) -> Iterator[bytes]:
    """Round numbers to another type, to nearest, piece by piece.

    Args:
        chunks: Whole values of `dtype`.
        dtype: F32, F16 or BF16.
        wanted: one of these.
    """
    source_type, stored_as = numpy_type(dtype), numpy_type(wanted)
    for chunk in chunks:
        yield np.frombuffer(chunk, source_type).astype(np.float32).astype(stored_as).tobytes()
