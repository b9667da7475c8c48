"""Reflinks and hard links, where the file system supports them.

A reflink is a separate file that shares its blocks until one of both is written. A hard link is the
same file under another name. Source: ioctl_ficlonerange(2), link(2).
"""

import fcntl
import os
import secrets
from pathlib import Path
from typing import Final, Literal

LinkMethod = Literal["reflink", "hard link", "copied", "written"]
"""How a file of an export was made."""

_FICLONE: Final = 0x40049409


def link_file(source: Path, target: Path, *, hard: bool = False) -> LinkMethod | None:
    """Give `target` the content of `source` without copying bytes.

    Args:
        source: An existing file; links are followed.
        target: A new file in an existing folder.
        hard: Whether a hard link is allowed where a reflink isn't possible.

    Returns:
        The method; None where none is possible, and then no file is left.
    """
    source = Path(os.path.realpath(source))
    if _reflink(source, target):
        return "reflink"
    if not hard:
        return None
    try:
        os.link(source, target)
    except OSError:
        return None
    return "hard link"


def can_link(source: Path, target: Path, *, hard: bool = False) -> bool:
    """Whether `link_file` would succeed; a reflink is tried out and removed.

    Args:
        source: An existing file.
        target: A path that need not exist; the nearest existing parent folder is tried. The path
            itself is not touched, since it may be about to be replaced.
        hard: As for `link_file`.
    """
    parents = Path(os.path.realpath(target)).parents
    existing = next(parent for parent in parents if os.path.isdir(parent))
    if hard and os.stat(source).st_dev == os.stat(existing).st_dev:
        return True
    trial = existing / f".reflink-{secrets.token_hex(8)}"
    found = _reflink(Path(os.path.realpath(source)), trial)
    trial.unlink(missing_ok=True)
    return found


def _reflink(source: Path, target: Path) -> bool:
    try:
        with source.open("rb") as original, target.open("xb") as copy:
            fcntl.ioctl(copy.fileno(), _FICLONE, original.fileno())
    except FileExistsError:
        raise
    except OSError:
        target.unlink(missing_ok=True)
        return False
    return True
