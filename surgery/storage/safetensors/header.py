"""Read the header of one safetensors file, and refuse an incomplete file.

Source: https://github.com/huggingface/safetensors (section "Format"), safetensors 0.8.
"""

import errno
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.storage.json_file import open_regular
from surgery.storage.safetensors.dtypes import DTYPE_BYTES

_KEYS: Final = {"dtype", "shape", "data_offsets"}
HEADER_LIMIT: Final = 100_000_000
_LFS_POINTER: Final = b"version https://git-lfs"
_DOWNLOAD: Final = "download the file again, for example with `hf download REPO --local-dir DIR`"


Progress = Callable[[int], None]
"""Progress callback, called with the bytes of each step, not with the sum."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a safetensors file.

    Args:
        name: Name on disk, which for some model types is not the name in memory.
        dtype: A key of `DTYPE_BYTES`.
        shape: Dimensions; `()` is a scalar.
        file: Path of the file.
        offset: Offset of the first byte from the start of the file.
        nbytes: Length in bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int


def tensor_bytes(dtype: str, shape: Iterable[int]) -> int:
    """Count the bytes of a tensor.

    Raises:
        ValueError: For a dtype that is not in `DTYPE_BYTES`, or a fractional number of bytes.
    """
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"dtype {dtype!r} is not one of {', '.join(DTYPE_BYTES)}")
    shape = tuple(shape)
    bits = math.prod(shape) * int(8 * DTYPE_BYTES[dtype])
    if bits % 8:
        raise ValueError(f"shape {shape} of {dtype} does not fill whole bytes")
    return bits // 8


@contextmanager
def read_errors(file: Path) -> Iterator[None]:
    """Turn an `OSError` from reading `file` into a `SurgeryError`: M201 if missing, else M207."""
    try:
        yield
    except OSError as error:
        raise SurgeryError(_unreadable_file(file, error)) from error


def _unreadable_file(file: Path, error: OSError) -> Diagnostic:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        why = "a link that leads nowhere" if file.is_symlink() else ""
        return diagnostic("M201.missing_file", file=file, why=why)
    denied = error.errno in (errno.EACCES, errno.EPERM)
    fix = "give yourself the right to read it (`ls -l` shows whose it is)"
    return diagnostic(
        "M207",
        file=file,
        reason=error.strerror or str(error),
        fix=fix if denied else "check the disk and the mount",
    )


def read_header(file: Path) -> dict[str, StoredTensor]:
    """Read and check the header of one safetensors file.

    Returns:
        Name to tensor, in the order of the bytes.

    Raises:
        SurgeryError: M204 shorter than it says (half-downloaded), M205 not a safetensors file,
            M206 a Git LFS pointer, M201 not there, M207 not readable.
    """
    with read_errors(file), open_regular(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        prefix = stream.read(max(9, len(_LFS_POINTER)))
        length = _header_length(file, prefix, size)
        stream.seek(8)
        header = stream.read(length)
    if len(header) < length:
        raise truncated(file, f"its header ends after {len(header):,} of {length:,} bytes")
    tensors = _parse_header(file, header)
    _check_spans(file, tensors, 8 + length, size)
    return {tensor.name: tensor for tensor in tensors}


def _header_length(file: Path, prefix: bytes, size: int) -> int:
    if prefix.startswith(_LFS_POINTER):
        raise SurgeryError(diagnostic("M206", file=file))
    if size < 8:
        raise truncated(file, f"it is {size} bytes long, too short for a header")
    length = int.from_bytes(prefix[:8], "little")
    if length == 0:
        raise truncated(file, "it starts with zeros, as a file does that was only reserved")
    if length > HEADER_LIMIT:
        raise _unreadable(file, f"its first 8 bytes say a header of {length:,} bytes")
    if len(prefix) > 8 and prefix[8:9] != b"{":
        raise _unreadable(file, "its header does not begin with `{`")
    if 8 + length > size:
        raise truncated(file, f"it holds {size:,} bytes and its header alone has {8 + length:,}")
    return length


def _parse_header(file: Path, header: bytes) -> list[StoredTensor]:
    try:
        entries = json.loads(header.decode(), object_pairs_hook=_unique, parse_int=_integer)
        _check_metadata(entries.pop("__metadata__", None))
        tensors = [_parse_entry(file, len(header), *entry) for entry in entries.items()]
    except RecursionError:
        raise _unreadable(file, "its header is nested without end") from None
    except (ValueError, TypeError) as error:
        raise _unreadable(file, f"its header is wrong: {error}") from error
    return sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a key is there twice")
    return entries


def _integer(digits: str) -> int:
    if digits == "-0":
        raise ValueError("-0 is no count")
    return int(digits)


def _check_metadata(metadata: object) -> None:
    """A map of strings, or null; safetensors opens no other, and no lone surrogate."""
    pairs = metadata.items() if isinstance(metadata, dict) else () if metadata is None else None
    if pairs is None or not all(isinstance(text, str) for pair in pairs for text in pair):
        raise ValueError("its metadata is no map of texts")
    "".join(text for pair in pairs for text in pair).encode()


def _parse_entry(file: Path, header_bytes: int, name: str, entry: dict[str, Any]) -> StoredTensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        counts, others = [*shape, begin, end], entry.keys() - _KEYS
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"tensor {name!r} lacks its dtype, shape or two data_offsets") from None
    if others:
        raise ValueError(f"tensor {name!r} has a key {min(others)!r} besides those three")
    name.encode()
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"tensor {name!r} has a shape or offset that is no count")
    if tensor_bytes(dtype, shape) != end - begin:
        raise ValueError(f"tensor {name!r}: {dtype} {shape} does not fill bytes {begin} to {end}")
    return StoredTensor(name, dtype, tuple(shape), file, 8 + header_bytes + begin, end - begin)


def _check_spans(file: Path, tensors: list[StoredTensor], start: int, size: int) -> None:
    end = start
    for tensor in tensors:
        if tensor.offset != end:
            raise _unreadable(file, f"tensor {tensor.name!r} overlaps another or leaves a hole")
        end += tensor.nbytes
    if size < end:
        raise truncated(file, f"it holds {size:,} of {end:,} bytes")
    if size > end:
        raise _unreadable(file, f"{size - end:,} bytes follow its last tensor")


def truncated(file: Path, why: str) -> SurgeryError:
    """Make the M204 for a file that is too short; it names unfinished downloads.

    Args:
        file: The safetensors file.
        why: What is too short.
    """
    rest = unfinished_downloads(file.parent)
    why += f"; unfinished downloads next to it: {', '.join(rest)}" if rest else ""
    return SurgeryError(diagnostic("M204", file=file, why=why))


def unfinished_downloads(folder: Path) -> list[str]:
    """List the partial files of unfinished huggingface_hub downloads, for `folder` or its cache."""
    folders = [folder, folder / ".cache" / "huggingface" / "download"]
    if folder.parent.name == "snapshots":
        folders.append(folder.parent.parent / "blobs")
    return sorted(str(file) for place in folders for file in place.glob("*.incomplete"))


def _unreadable(file: Path, why: str) -> SurgeryError:
    return SurgeryError(diagnostic("M205.unreadable", file=file, why=why))
