"""What a command reads, and the refusal of an output that would harm it.

Places are compared by device and inode, so that links, relative spellings, bind mounts and disks
that ignore the case of letters make no difference.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError

_Identity = tuple[int, int]
"""Device and inode."""


@dataclass(frozen=True, slots=True)
class Input:
    """A file or a folder that a command reads.

    Args:
        path: as the user typed it, or as it was found; need not exist.
        name: what it is, in a sentence.
        open: whether an output may lie inside it, as beside the pictures of a data file.
    """

    path: Path
    name: str
    open: bool = False


def refuse_inputs(out: Path, inputs: Iterable[Input]) -> None:
    """Refuse an output that is, holds or lies inside what a command reads.

    Args:
        out: a file or a folder, which need not exist.
        inputs: what is read; of a folder, files and folders that it links to are read too.

    Raises:
        SurgeryError: A306.
    """
    around = _identities(out)
    own = around[0] if os.path.exists(out) else None
    for item in inputs:
        for read in _read(item):
            how = _overlap(own, around, read)
            if how:
                raise SurgeryError(_would_harm(out, how, item))


def _overlap(own: _Identity | None, around: list[_Identity], read: Input) -> str:
    """How an output that exists as `own`, inside the folders `around`, meets an input."""
    if not os.path.exists(read.path):
        return ""
    holding = _identities(read.path)
    if own == holding[0]:
        return "is"
    if own in (*holding, *_identities(read.path.absolute().parent)):
        return "holds"
    return "lies inside" if not read.open and holding[0] in around else ""


def _read(item: Input) -> Iterator[Input]:
    yield item
    if not item.open and item.path.is_dir():
        with os.scandir(item.path) as entries:
            links = [Path(entry.path) for entry in entries if entry.is_symlink()]
        yield from (Input(link, item.name, open=True) for link in links)


def _identities(path: Path) -> list[_Identity]:
    """Of a place and of the folders around it, innermost first; of those that exist."""
    real = Path(os.path.realpath(path))
    found = []
    for candidate in (real, *real.parents):
        with suppress(OSError):
            status = os.stat(candidate)
            found.append((status.st_dev, status.st_ino))
    return found


def _would_harm(out: Path, how: str, item: Input) -> Diagnostic:
    return Diagnostic(
        code="A306",
        what=f"the output `{out}` {how} {item.name} that is read, `{item.path}`",
        why="a command never writes into, over or around what it reads",
        fix="choose an `--out` beside it",
    )
