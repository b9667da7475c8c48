"""Write safetensors files from byte ranges of others: no torch, no numpy, no loading.

The header is padded so that the tensors begin on a page, and tensors whose bytes follow each other
in a source are copied in one go.

Source: https://github.com/huggingface/safetensors (section "Format").
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from surgery.storage.safetensors.direct_write import ALIGNMENT, ByteSource, Range, transfer
from surgery.storage.safetensors.dtypes import DTYPE_BYTES
from surgery.storage.safetensors.header import (
    Progress,
    StoredTensor,
    read_errors,
    tensor_bytes,
)

FORMAT: Final[Mapping[str, str]] = {"format": "pt"}

Spec = tuple[str, str, tuple[int, ...]]
"""Name, dtype (a key of `DTYPE_BYTES`) and shape of a tensor."""


@dataclass(frozen=True, slots=True)
class NewTensor:
    """A tensor to write.

    Args:
        name: Name on disk.
        dtype: A key of `DTYPE_BYTES`.
        shape: Dimensions; `()` is a scalar.
        source: The stored tensor whose bytes are copied, or a function that returns the bytes
            (row-major, little-endian), called once, when they are written.

    Raises:
        ValueError: Where a stored source has another dtype or shape.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: StoredTensor | Callable[[], bytes]

    def __post_init__(self) -> None:
        source = self.source
        if isinstance(source, StoredTensor) and (source.dtype, source.shape) != self.spec[1:]:
            raise ValueError(
                f"{self.name!r} is {self.dtype} {self.shape}, "
                f"its source {source.name!r} is {source.dtype} {source.shape}"
            )

    @property
    def spec(self) -> Spec:
        """Its entry in the header: name, dtype and shape."""
        return self.name, self.dtype, self.shape

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return tensor_bytes(self.dtype, self.shape)


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout of a file on disk.

    Args:
        header: The file's first bytes: length, JSON and padding, to a multiple of 4096.
        order: Indices of the given tensors, in the order on disk.
        size: Size of the file in bytes.
    """

    header: bytes
    order: tuple[int, ...]
    size: int


def layout(specs: Iterable[Spec], metadata: Mapping[str, str] = FORMAT) -> Layout:
    """Compute a file's layout from names, dtypes and shapes alone.

    On disk wide dtypes come first, so that all data is aligned; otherwise the given order is kept,
    so that tensors that are contiguous in a source stay contiguous.

    Raises:
        ValueError: For an unknown dtype, or a name given twice.
    """
    specs = list(specs)
    order = sorted(range(len(specs)), key=lambda i: -DTYPE_BYTES.get(specs[i][1], 0))
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, dtype, shape in (specs[i] for i in order):
        if name in entries or name == "__metadata__":
            raise ValueError(f"the tensor name {name!r} is there twice or is reserved")
        begin, end = end, end + tensor_bytes(dtype, shape)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    return Layout(len(text).to_bytes(8, "little") + text, tuple(order), 8 + len(text) + end)


def file_size(specs: Iterable[Spec], metadata: Mapping[str, str] = FORMAT) -> int:
    """Predict the bytes of the file that `write_safetensors` would write."""
    return layout(specs, metadata).size


def write_safetensors(
    file: Path,
    tensors: Sequence[NewTensor],
    metadata: Mapping[str, str] = FORMAT,
    progress: Progress | None = None,
) -> None:
    """Write `tensors` to the new file `file`; on failure, leave no file.

    Args:
        file: New file in an existing folder.
        tensors: Tensors in any order, see `layout`.
        metadata: The header's `__metadata__`.
        progress: Progress callback for the bytes of each written chunk, which add up to
            `file_size`.

    Raises:
        SurgeryError: M204 where a source ends early, M201 or M207 where it can't be read, A301
            where `file` exists, A302 disk full, A303 no permission, A304 for other I/O errors.
        ValueError: Where a function returns more or fewer bytes than its tensor has, and as
            `layout`.
    """
    plan = layout((tensor.spec for tensor in tensors), metadata)
    sources = [plan.header, *_coalesce(tensors[i] for i in plan.order)]
    transfer(Path(file), sources, plan.size, progress)


def copy_file(source: Path, target: Path, progress: Progress | None = None) -> None:
    """Copy the bytes of any file to the new file `target`, following links.

    Raises:
        SurgeryError: As `write_safetensors`.
    """
    with read_errors(source):
        size = os.stat(source).st_size
    transfer(Path(target), [Range(Path(source), 0, size)], size, progress)


def _coalesce(tensors: Iterable[NewTensor]) -> list[ByteSource]:
    """Join stored tensors whose bytes follow each other."""
    sources: list[ByteSource] = []
    for tensor in tensors:
        source, last = tensor.source, sources[-1] if sources else None
        if not isinstance(source, StoredTensor):
            sources.append(partial(_make, tensor.name, tensor.nbytes, source))
        elif isinstance(last, Range) and _end(last) == (source.file, source.offset):
            sources[-1] = Range(last.file, last.offset, last.nbytes + source.nbytes)
        else:
            sources.append(Range(source.file, source.offset, source.nbytes))
    return sources


def _end(range_: Range) -> tuple[Path, int]:
    return range_.file, range_.offset + range_.nbytes


def _make(name: str, nbytes: int, source: Callable[[], bytes]) -> bytes:
    content = source()
    if len(content) != nbytes:
        raise ValueError(f"{name!r} has {nbytes} bytes, {len(content)} were made")
    return content
