"""Write a safetensors file from streams of bytes, hashing it on the way.

One thread prefetches the bytes (it reads or computes), one hashes them, and `transfer` writes them
in its own threads. Only a few chunks are in memory.
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Final, Protocol

from surgery.storage.safetensors.direct_write import transfer
from surgery.storage.safetensors.header import Progress, StoredTensor, read_errors, truncated
from surgery.storage.safetensors.writer import NewTensor, Spec, file_size, layout

STREAM_CHUNK_BYTES: Final = 1 << 19
"""Largest size of a chunk in bytes; others from 0.25 to 4 MiB take more CPU time (measured)."""

_AHEAD: Final = 3


class Hash(Protocol):
    """Anything that takes the bytes of a file in order, such as `hashlib.sha256()`."""

    def update(self, data: bytes, /) -> None:
        """Take the next bytes."""


@dataclass(frozen=True, slots=True)
class Streamed:
    """A tensor to write.

    Args:
        spec: Name on disk, dtype and shape.
        chunks: Yields its bytes in order (row-major, little-endian); called when they are written.
    """

    spec: Spec
    chunks: Callable[[], Iterator[bytes]]


def streamed(tensor: NewTensor) -> Streamed:
    """Return a tensor of `surgery.storage.safetensors.writer` as a stream."""
    source = tensor.source
    if isinstance(source, StoredTensor):
        return Streamed(tensor.spec, partial(stored_chunks, source))
    return Streamed(tensor.spec, lambda: iter((source(),)))


def stored_chunks(tensor: StoredTensor) -> Iterator[bytes]:
    """Read the bytes of a stored tensor.

    Raises:
        SurgeryError: M204 where the file ends early, M201 or M207 where it can't be read.
    """
    return read_chunks(tensor.file, tensor.offset, tensor.nbytes)


def read_chunks(file: Path, offset: int, nbytes: int) -> Iterator[bytes]:
    """Read a range of a file.

    Args:
        file: Path of the file.
        offset: Offset of the first byte.
        nbytes: Length in bytes.

    Raises:
        SurgeryError: As `stored_chunks`.
    """
    with read_errors(file):
        descriptor = os.open(file, os.O_RDONLY)
    try:
        end = offset + nbytes
        while offset < end:
            with read_errors(file):
                chunk = os.pread(descriptor, min(STREAM_CHUNK_BYTES, end - offset), offset)
            if not chunk:
                raise truncated(file, f"it ends {end - offset:,} bytes early")
            offset += len(chunk)
            yield chunk
    finally:
        os.close(descriptor)


def streamed_size(tensors: Iterable[Streamed]) -> int:
    """Bytes of the file that `write_streamed` would write."""
    return file_size(tensor.spec for tensor in tensors)


def write_streamed(
    file: Path, tensors: Sequence[Streamed], progress: Progress | None = None
) -> str:
    """Write tensors to the new file `file`; on failure, leave no file.

    Args:
        file: New file in an existing folder.
        tensors: Tensors in any order; on disk wide dtypes come first.
        progress: Progress callback for the bytes of each step, which add up to `streamed_size`.

    Returns:
        The file's SHA-256 in hex.

    Raises:
        SurgeryError: A301 to A304 for disk errors, M201, M204 and M207 for the sources.
    """
    plan = layout(tensor.spec for tensor in tensors)
    streams = (tensors[position].chunks() for position in plan.order)
    chunks = chain([plan.header], chain.from_iterable(streams))
    return _write(file, chunks, plan.size, progress)


def copy_streamed(source: Path, file: Path, progress: Progress | None = None) -> str:
    """Copy any file to the new file `file`, following links, and return its SHA-256 in hex.

    Raises:
        SurgeryError: As `write_streamed`.
    """
    with read_errors(source):
        size = os.stat(source).st_size
    return _write(file, read_chunks(source, 0, size), size, progress)


def hash_file(file: Path, progress: Progress | None = None) -> str:
    """Read a file and return its SHA-256 in hex.

    Raises:
        SurgeryError: M201, M204 and M207 where it can't be read.
    """
    digest = hashlib.sha256()
    for chunk in _ahead(read_chunks(file, 0, os.stat(file).st_size)):
        digest.update(chunk)
        if progress:
            progress(len(chunk))
    return digest.hexdigest()


def _write(file: Path, chunks: Iterator[bytes], size: int, progress: Progress | None) -> str:
    digest = hashlib.sha256()
    transfer(file, _hashed(_ahead(chunks), digest), size, progress)
    return digest.hexdigest()


def _hashed(chunks: Iterator[bytes], digest: Hash) -> Iterator[bytes]:
    """Pass chunks on, and hash each in a thread while it is used."""
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(digest.update, b"")
        for chunk in chunks:
            pending.result()
            pending = pool.submit(digest.update, chunk)
            yield chunk


def _ahead(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Prefetch chunks in a thread while earlier ones are used."""
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, chunks, None) for _ in range(_AHEAD))
        while (chunk := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(next, chunks, None))
            yield chunk
