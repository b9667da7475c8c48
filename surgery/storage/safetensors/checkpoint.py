"""Read the tensors of a checkpoint folder from the headers of its safetensors files alone.

No weights are loaded: a header gives the byte range of each tensor, which `writer.py` copies. All
shards are checked before any work starts, and all errors are raised together.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError, raise_errors, some_of
from surgery.storage.escape import escapes
from surgery.storage.json_file import digest, open_regular, read_regular
from surgery.storage.safetensors.header import (
    Progress,
    StoredTensor,
    read_errors,
    read_header,
    truncated,
    unfinished_downloads,
)

__all__ = [
    "Checkpoint",
    "Progress",
    "StoredTensor",
    "fingerprint",
    "read_checkpoint",
    "read_header",
]

WEIGHTS_NAME: Final = "model.safetensors"
INDEX_NAME: Final = "model.safetensors.index.json"
_SAMPLE_BYTES: Final = 256
_READ_WHOLE: Final = 16 << 20
"""Size in bytes up to which the second sample is the complete checkpoint."""
_STRIDED_BYTES: Final = 4 << 20
"""Size in bytes of the second sample of a larger one: some 4,000 blocks, which cost 25 ms."""
_STRIDED_BLOCK: Final = 1024
_READ_BYTES: Final = 4 << 20
_CONFIG_NOISE: Final = ("_name_or_path", "transformers_version")


@dataclass(frozen=True)
class Checkpoint:
    """The headers of a checkpoint folder.

    Args:
        folder: Path of the folder.
        files: Its safetensors files, sorted by name.
        tensors: From name on disk to location; file by file, each in the order of its bytes.
    """

    folder: Path
    files: tuple[Path, ...]
    tensors: dict[str, StoredTensor]


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read the headers of a folder with `model.safetensors`, or with shards and their index.

    Where both exist the single file wins, as in transformers. A tensor that is in a shard and not
    in the index belongs to the checkpoint, as in transformers.

    Raises:
        SurgeryError: All problems of all shards together. M201 no weights, M202 only
            `pytorch_model*.bin`, M203 the index names missing files, M208 index and shards
            disagree, and those of `read_header`.
    """
    folder = Path(folder)
    with read_errors(folder):
        names = sorted(os.listdir(folder))
    if WEIGHTS_NAME in names:
        file = folder / WEIGHTS_NAME
        return Checkpoint(folder, (file,), read_header(file))
    if INDEX_NAME not in names:
        raise SurgeryError(_no_weights(folder, names))
    listed = _read_index(folder / INDEX_NAME)
    files = tuple(sorted(listed))
    with read_errors(folder):
        found = _missing_files(folder, files)
    tensors: dict[str, StoredTensor] = {}
    for file in filter(os.path.exists, files):
        try:
            stored = read_header(file)
        except SurgeryError as error:
            found += error.diagnostics
            continue
        found += _disagreements(file, stored, listed[file], tensors)
        tensors.update(stored)
    raise_errors(found)
    return Checkpoint(folder, files, tensors)


def fingerprint(
    checkpoint: Checkpoint, *, checksum: bool = False, progress: Progress | None = None
) -> dict[str, str | None]:
    """Identify a checkpoint, independent of its sharding.

    Args:
        checkpoint: The headers, from `read_checkpoint`.
        checksum: Whether to read all bytes.
        progress: Progress callback for the bytes read for the checksum.

    Returns:
        SHA-256 in hex under five keys. `config`: config.json without the keys that name its writer,
        None without that file. `tensors`: names, dtypes and shapes. `sample`: the first and last
        256 bytes of every tensor, in which two fine-tunes of one architecture differ. `strided`:
        blocks at equal distances, 4 MiB in total, or all bytes up to 16 MiB. `checksum`: all bytes
        in the order of the names, None unless requested.

    Raises:
        SurgeryError: M204 or M207 where a file can't be read, M205 where config.json isn't JSON.
    """
    tensors = [checkpoint.tensors[name] for name in sorted(checkpoint.tensors)]
    specs = [[tensor.name, tensor.dtype, list(tensor.shape)] for tensor in tensors]
    ranges = ((t.file, t.offset, t.nbytes) for t in tensors)
    return {
        "config": _config_hash(checkpoint.folder / "config.json"),
        "tensors": digest(specs),
        "sample": _bytes_hash(_sample_ranges(tensors)),
        "strided": _bytes_hash(_strided_ranges(tensors)),
        "checksum": _bytes_hash(ranges, progress) if checksum else None,
    }


def _no_weights(folder: Path, names: list[str]) -> Diagnostic:
    if any(name.startswith("pytorch_model") and name.endswith(".bin") for name in names):
        return diagnostic("M202", folder=folder)
    others = [name for name in names if name.endswith(".safetensors")]
    unfinished = unfinished_downloads(folder)
    why = f"neither {WEIGHTS_NAME} nor {INDEX_NAME} is in it"
    why += f"; it has {', '.join(others[:4])}" if others else ""
    why += f"; unfinished downloads: {', '.join(unfinished)}" if unfinished else ""
    fix = f"download {INDEX_NAME} too" if len(others) > 1 else "download the complete repository"
    return diagnostic("M201.no_weights", folder=folder, why=why, fix=fix)


def _read_index(file: Path) -> dict[Path, set[str]]:
    """From each shard to the names of its tensors, according to the index."""
    with read_errors(file):
        text = read_regular(file)
    listed: dict[Path, set[str]] = {}
    try:
        for name, shard in _weight_map(json.loads(text)).items():
            listed.setdefault(file.parent / _inside(shard), set()).add(name)
    except (ValueError, RecursionError) as error:
        raise SurgeryError(diagnostic("M208.not_an_index", file=file, reason=str(error))) from error
    return listed


def _weight_map(index: Any) -> dict[str, Any]:
    listed = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(listed, dict) or not listed:
        raise ValueError("it has no `weight_map` that names tensors")
    return listed


def _inside(shard: Any) -> str:
    if not isinstance(shard, str) or escapes(shard):
        raise ValueError(f"the shard {shard!r} is outside the folder")
    return shard


def _missing_files(folder: Path, files: Iterable[Path]) -> list[Diagnostic]:
    missing = [str(file.relative_to(folder)) for file in files if not os.path.lexists(file)]
    missing += [f"{file.name} (a broken link)" for file in files if _is_broken(file)]
    if not missing:
        return []
    unfinished = unfinished_downloads(folder)
    why = f"unfinished downloads: {', '.join(unfinished)}" if unfinished else ""
    return [
        diagnostic("M203", index_name=INDEX_NAME, folder=folder, missing=list(missing), why=why)
    ]


def _is_broken(file: Path) -> bool:
    return file.is_symlink() and not file.exists()


def _disagreements(
    file: Path,
    stored: dict[str, StoredTensor],
    expected: set[str],
    before: dict[str, StoredTensor],
) -> list[Diagnostic]:
    """Compare one shard with the index, and with the shards read before it."""
    found = []
    if absent := sorted(expected - stored.keys()):
        found.append(
            diagnostic("M208.lacking", file=file, absent=some_of(absent), index_name=INDEX_NAME)
        )
    if twice := sorted(stored.keys() & before.keys()):
        found.append(
            diagnostic("M208.twice", file=file, names=some_of(twice), other=before[twice[0]].file)
        )
    return found


def _config_hash(file: Path) -> str | None:
    if not file.exists():
        return None
    with read_errors(file):
        text = read_regular(file)
    try:
        return digest(_without_noise(json.loads(text)))
    except (ValueError, RecursionError) as error:
        raise SurgeryError(diagnostic("M205.not_json", file=file, reason=str(error))) from error


def _without_noise(content: Any) -> Any:
    """Drop the keys that name a config's writer; `torch_dtype` is the old name of `dtype`."""
    if isinstance(content, list):
        return [_without_noise(item) for item in content]
    if not isinstance(content, dict):
        return content
    return {
        "dtype" if key == "torch_dtype" else key: _without_noise(value)
        for key, value in content.items()
        if key not in _CONFIG_NOISE
    }


def _sample_ranges(tensors: Iterable[StoredTensor]) -> Iterator[tuple[Path, int, int]]:
    for tensor in tensors:
        n = min(tensor.nbytes, _SAMPLE_BYTES)
        yield tensor.file, tensor.offset, n
        yield tensor.file, tensor.offset + tensor.nbytes - n, n


def _strided_ranges(tensors: Sequence[StoredTensor]) -> Iterator[tuple[Path, int, int]]:
    """Blocks at equal distances, for each tensor in proportion to its size."""
    total = sum(tensor.nbytes for tensor in tensors)
    for tensor in tensors:
        blocks = -(-tensor.nbytes * _STRIDED_BYTES // (max(total, 1) * _STRIDED_BLOCK))
        if total <= _READ_WHOLE or tensor.nbytes <= blocks * _STRIDED_BLOCK:
            yield tensor.file, tensor.offset, tensor.nbytes
            continue
        stride = tensor.nbytes // blocks
        for block in range(blocks):
            yield (
                tensor.file,
                tensor.offset + block * stride + (stride - _STRIDED_BLOCK) // 2,
                _STRIDED_BLOCK,
            )


def _bytes_hash(ranges: Iterable[tuple[Path, int, int]], progress: Progress | None = None) -> str:
    found = hashlib.sha256()
    for chunk in _read_ranges(ranges):
        found.update(chunk)
        if progress:
            progress(len(chunk))
    return found.hexdigest()


def _read_ranges(ranges: Iterable[tuple[Path, int, int]]) -> Iterator[bytes]:
    """Read (file, offset, bytes) ranges in chunks of at most 4 MiB."""
    with ExitStack() as stack:
        streams: dict[Path, BinaryIO] = {}
        for file, offset, nbytes in ranges:
            with read_errors(file):
                if file not in streams:
                    streams[file] = stack.enter_context(open_regular(file))
                for at in range(offset, offset + nbytes, _READ_BYTES):
                    yield _read_exactly(
                        file, streams[file], at, min(_READ_BYTES, offset + nbytes - at)
                    )


def _read_exactly(file: Path, stream: BinaryIO, offset: int, nbytes: int) -> bytes:
    chunk = os.pread(stream.fileno(), nbytes, offset)
    if len(chunk) < nbytes:
        raise truncated(file, f"it ends {nbytes - len(chunk):,} bytes early")
    return chunk
