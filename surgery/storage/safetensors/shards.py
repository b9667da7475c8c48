"""The weight files of a new checkpoint and their index, as in transformers."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from surgery.storage.safetensors.checkpoint import INDEX_NAME, WEIGHTS_NAME
from surgery.storage.safetensors.header import Progress
from surgery.storage.safetensors.writer import NewTensor, file_size, write_safetensors

SHARD_BYTES: Final = 5_000_000_000
"""Largest size of the tensors in one file, in bytes; the default of `save_pretrained`, 5 GB."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of weights.

    Args:
        name: Name of the file.
        tensors: Its tensors, in the given order.
    """

    name: str
    tensors: tuple[NewTensor, ...]

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return file_size(tensor.spec for tensor in self.tensors)


def make_shards(tensors: Iterable[NewTensor]) -> list[Shard]:
    """Split tensors into files of at most `SHARD_BYTES` each."""
    files: list[list[NewTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if size and size + tensor.nbytes > SHARD_BYTES:
            files.append([])
            size = 0
        files[-1].append(tensor)
        size += tensor.nbytes
    count = len(files)
    many = (f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1))
    names = [WEIGHTS_NAME] if count == 1 else many
    return [Shard(name, tuple(file)) for name, file in zip(names, files, strict=True)]


def shard_index(shards: Iterable[Shard]) -> dict[str, bytes]:
    """Return the index of the shards by its file name; nothing where there is one file."""
    shards = list(shards)
    if len(shards) == 1:
        return {}
    total = sum(tensor.nbytes for shard in shards for tensor in shard.tensors)
    names = {tensor.name: shard.name for shard in shards for tensor in shard.tensors}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(names.items()))}
    return {INDEX_NAME: (json.dumps(index, indent=2) + "\n").encode()}


def write_shards(shards: Iterable[Shard], folder: Path, progress: Progress | None) -> None:
    """Write the files into a folder.

    Raises:
        SurgeryError: A302 to A304 for disk errors, M201 to M208 for the source files.
    """
    for shard in shards:
        write_safetensors(folder / shard.name, shard.tensors, progress=progress)
