"""What the files of an export are made of: other files, streams of tensors, or bytes at hand."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from surgery.runtime.manifest import ExportedFile
from surgery.storage.disk_errors import io_errors
from surgery.storage.link import can_link, link_file
from surgery.storage.safetensors.header import Progress
from surgery.storage.safetensors.stream import (
    Streamed,
    copy_streamed,
    hash_file,
    streamed_size,
    write_streamed,
)


@dataclass(frozen=True)
class Copied:
    """A small file of the base, which users may want to edit."""

    source: Path

    @property
    def name(self) -> str:
        """The same as the source's."""
        return self.source.name

    def required_space(self, folder: Path) -> int:
        """All of it."""
        return self.source.stat().st_size

    def write(self, folder: Path, progress: Progress | None) -> ExportedFile:
        """Copy it."""
        target = folder / self.name
        digest = copy_streamed(self.source, target, progress)
        return ExportedFile(
            name=self.name, bytes=target.stat().st_size, sha256=digest, how="copied"
        )


@dataclass(frozen=True)
class Linked:
    """A weight file that nothing changes: shared where the disk can do that, else copied.

    Args:
        source: the file.
        name: what it is called in the export.
        copy: whether to copy it in any case.
        checksum: whether to read a file that is shared for its SHA-256.
        hard: whether a hard link is a way to share it: who writes into that, writes into `source`.
    """

    source: Path
    name: str
    copy: bool
    checksum: bool
    hard: bool = False

    def required_space(self, folder: Path) -> int:
        """Nothing, where it is shared."""
        is_shared = not self.copy and can_link(self.source, folder, hard=self.hard)
        return 0 if is_shared else self.source.stat().st_size

    def write(self, folder: Path, progress: Progress | None) -> ExportedFile:
        """Share or copy it."""
        target = folder / self.name
        with io_errors(target):
            how = None if self.copy else link_file(self.source, target, hard=self.hard)
        if how is None:
            digest: str | None = copy_streamed(self.source, target, progress)
        else:
            digest = hash_file(target) if self.checksum else None
        size = target.stat().st_size
        return ExportedFile(name=self.name, bytes=size, sha256=digest, how=how or "copied")


@dataclass(frozen=True)
class Weights:
    """A safetensors file out of streams.

    Args:
        name: of the file.
        tensors: what goes in.
    """

    name: str
    tensors: tuple[Streamed, ...]

    def required_space(self, folder: Path) -> int:
        """Its size."""
        return streamed_size(self.tensors)

    def write(self, folder: Path, progress: Progress | None) -> ExportedFile:
        """Stream it."""
        digest = write_streamed(folder / self.name, self.tensors, progress)
        size = streamed_size(self.tensors)
        return ExportedFile(name=self.name, bytes=size, sha256=digest, how="written")


@dataclass(frozen=True)
class Content:
    """A small file out of bytes at hand."""

    name: str
    content: bytes

    def required_space(self, folder: Path) -> int:
        """Its size."""
        return len(self.content)

    def write(self, folder: Path, progress: Progress | None) -> ExportedFile:
        """Write it."""
        target = folder / self.name
        with io_errors(target):
            target.write_bytes(self.content)
        digest, size = hashlib.sha256(self.content).hexdigest(), len(self.content)
        return ExportedFile(name=self.name, bytes=size, sha256=digest, how="written")


def json_content(name: str, document: Mapping[str, Any]) -> Content:
    """A JSON file as transformers and PEFT write theirs."""
    return Content(name, f"{json.dumps(document, indent=2, ensure_ascii=False)}\n".encode())


def contents_of(files: Mapping[str, bytes]) -> Iterator[Content]:
    """Files by their names."""
    return (Content(name, content) for name, content in files.items())


def copies(files: Iterable[Path]) -> Iterator[Copied]:
    """Small files, each copied."""
    return (Copied(file) for file in files)
