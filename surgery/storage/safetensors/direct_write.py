"""Write one new file from byte ranges and functions, bypassing the page cache.

Reads go through the page cache, where the source often is already. Writes bypass it in aligned
chunks, since with a cached source the cost of a copy is the kernel's page-cache allocation for the
output. Where a file system refuses that, writes are plain. Measured in benchmarks/splice.

Source: open(2), section "O_DIRECT".
"""

import errno
import fcntl
import mmap
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from surgery.storage.disk_errors import check_free_space, io_errors
from surgery.storage.safetensors.header import Progress, read_errors, truncated

ALIGNMENT: Final = 4096
CHUNK_BYTES: Final = 8 << 20
WRITERS: Final = 2


@dataclass(frozen=True, slots=True)
class Range:
    """Contiguous bytes of a source file.

    Args:
        file: Path of the file.
        offset: Offset of the first byte from the start of the file.
        nbytes: Length in bytes.
    """

    file: Path
    offset: int
    nbytes: int


ByteSource = bytes | Range | Callable[[], bytes]
"""Bytes in memory, a range of a file, or a function that is called when its bytes are written."""


def transfer(
    file: Path, sources: Iterable[ByteSource], size: int, progress: Progress | None
) -> None:
    """Write `sources` one after the other to the new file `file`; on failure, leave no file.

    Args:
        file: New file in an existing folder.
        sources: Content of the file, in order.
        size: Bytes of all sources.
        progress: Progress callback for the bytes of each written chunk, which add up to `size`.

    Raises:
        SurgeryError: M204 where a source ends early, M201 or M207 where it can't be read, A301
            where `file` exists, A302 disk full, A303 no permission, A304 for other I/O errors.
    """
    with io_errors(file, size):
        check_free_space(file, size)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            _use_direct(descriptor, True)
            with _ChunkWriter(descriptor, progress) as writer:
                for source in sources:
                    writer.put(source)
            os.ftruncate(descriptor, size)
            os.fsync(descriptor)
        except BaseException:
            file.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)


class _ChunkWriter:
    """Collects sources into aligned chunks, and writes each while the next is collected.

    Args:
        descriptor: File descriptor of the empty file.
        progress: Progress callback for the bytes of each written chunk.
    """

    def __init__(self, descriptor: int, progress: Progress | None) -> None:
        self._descriptor = descriptor
        self._progress = progress
        self._spare = [mmap.mmap(-1, CHUNK_BYTES) for _ in range(WRITERS + 1)]
        self._pending: deque[tuple[Future[None], mmap.mmap, int]] = deque()
        self._pool = ThreadPoolExecutor(WRITERS)
        self._offset = 0
        self._filled = 0

    def __enter__(self) -> "_ChunkWriter":
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        with self._pool:
            if kind is None:
                self._flush()
                while self._pending:
                    self._await_chunk()

    def put(self, source: ByteSource) -> None:
        if isinstance(source, Range):
            self._put_range(source)
        else:
            self._put_bytes(source if isinstance(source, bytes) else source())

    def _put_bytes(self, content: bytes) -> None:
        left = memoryview(content)
        while left:
            free = self._free_space()
            n = min(len(free), len(left))
            free[:n] = left[:n]
            left = left[n:]
            self._advance(n)

    def _put_range(self, source: Range) -> None:
        done = 0
        with _opened(source.file) as descriptor:
            while done < source.nbytes:
                free = self._free_space()[: source.nbytes - done]
                with read_errors(source.file):
                    n = os.preadv(descriptor, [free], source.offset + done)
                if n == 0:
                    raise truncated(source.file, f"it ends {source.nbytes - done:,} bytes early")
                done += n
                self._advance(n)

    def _free_space(self) -> memoryview:
        """The unfilled part of the current chunk, waiting for one where none is free."""
        if not self._spare:
            self._await_chunk()
        return memoryview(self._spare[-1])[self._filled :]

    def _advance(self, n: int) -> None:
        self._filled += n
        if self._filled == CHUNK_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._filled:
            return
        chunk, n = self._spare.pop(), self._filled
        padded = n + -n % ALIGNMENT
        future = self._pool.submit(_write_chunk, self._descriptor, chunk, padded, self._offset)
        self._pending.append((future, chunk, n))
        self._offset += n
        self._filled = 0

    def _await_chunk(self) -> None:
        future, chunk, n = self._pending.popleft()
        future.result()
        self._spare.append(chunk)
        if self._progress:
            self._progress(n)


def _write_chunk(descriptor: int, chunk: mmap.mmap, n: int, offset: int) -> None:
    left, is_direct = memoryview(chunk)[:n], True
    while left:
        try:
            written = os.pwrite(descriptor, left, offset)
        except OSError as error:
            if error.errno != errno.EINVAL or not is_direct:
                raise
            _use_direct(descriptor, False)  # the other writer thread may have turned it off
            is_direct = False
            continue
        left, offset = left[written:], offset + written


def _use_direct(descriptor: int, direct: bool) -> bool:
    """Turn O_DIRECT on or off; return whether that changed anything.

    It is set after the file is open, since an `open` that refuses it can leave a file.
    """
    flag = getattr(os, "O_DIRECT", 0)
    before = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    after = before | flag if direct else before & ~flag
    with suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETFL, after)
        return before != after
    return False


@contextmanager
def _opened(file: Path) -> Iterator[int]:
    with read_errors(file):
        descriptor = os.open(file, os.O_RDONLY)
    try:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        yield descriptor
    finally:
        os.close(descriptor)
