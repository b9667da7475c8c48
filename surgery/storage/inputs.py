"""The inputs of a command, and the refusal of an output that would overwrite one.

Paths are compared by device and inode, so that links, relative spellings, bind mounts and
case-insensitive disks make no difference.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError

_Identity = tuple[int, int]
"""Device and inode."""


@dataclass(frozen=True, slots=True)
class Input:
    """A file or a folder that a command reads.

    Args:
        path: Path as the user typed it, or as it was found; need not exist.
        name: Description for a message, such as `the base`.
        open: Whether an output may be inside it, as in the image folder of a data file.
    """

    path: Path
    name: str
    open: bool = False


def refuse_inputs(out: Path, inputs: Iterable[Input]) -> None:
    """Refuse an output that is, contains or is inside an input.

    Args:
        out: A file or a folder, which need not exist.
        inputs: Inputs of the command; the targets of links in an input folder count as inputs.

    Raises:
        SurgeryError: A306.
    """
    around = _identities(out)
    own = around[0] if os.path.exists(out) else None
    for item in inputs:
        for read in _read(item):
            how = _overlap(own, around, read)
            if how:
                raise SurgeryError(
                    diagnostic("A306", out=out, how=how, name=item.name, path=item.path)
                )


def _overlap(own: _Identity | None, around: list[_Identity], read: Input) -> str:
    """How an output overlaps an input: `is`, `holds`, `is inside`, or empty.

    Args:
        own: Identity of the output; None where it doesn't exist.
        around: Identities of the output and its parent folders, innermost first.
        read: The input.
    """
    if not os.path.exists(read.path):
        return ""
    holding = _identities(read.path)
    if own == holding[0]:
        return "is"
    if own in (*holding, *_identities(read.path.absolute().parent)):
        return "holds"
    return "is inside" if not read.open and holding[0] in around else ""


def _read(item: Input) -> Iterator[Input]:
    yield item
    if not item.open and item.path.is_dir():
        with os.scandir(item.path) as entries:
            links = [Path(entry.path) for entry in entries if entry.is_symlink()]
        yield from (Input(link, item.name, open=True) for link in links)


def _identities(path: Path) -> list[_Identity]:
    """Identities of a path and its parent folders, innermost first, where they exist."""
    real = Path(os.path.realpath(path))
    found = []
    for candidate in (real, *real.parents):
        with suppress(OSError):
            status = os.stat(candidate)
            found.append((status.st_dev, status.st_ino))
    return found
