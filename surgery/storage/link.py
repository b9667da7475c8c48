"""Give a file a second name, or a second copy that shares its blocks, where the disk can do that.

A reflink is a file of its own: who writes into it changes nothing else. A hard link is the same
file under another name. Source: ioctl_ficlonerange(2), link(2).
"""

import fcntl
import os
import secrets
from pathlib import Path
from typing import Final, Literal

LinkMethod = Literal["reflink", "hard link", "copied", "written"]
"""How a file came to be where it is."""

_FICLONE: Final = 0x40049409


def link_file(source: Path, target: Path, *, hard: bool = False) -> LinkMethod | None:
    """Make `target` the same bytes as `source` without writing them.

    Args:
        source: a file, or a link to one, which is followed.
        target: must not exist; its folder must.
        hard: whether it may be a hard link where it can't be a reflink.

    Returns:
        How it was done; None where this disk can't, or may not, and nothing is left behind.
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
    """Whether `link_file` would find a way; a reflink is tried out and removed.

    Args:
        source: a file that exists.
        target: need not exist; the nearest folder around it is asked, and itself left alone, since
            it may be what is about to be replaced.
        hard: as for `link_file`.
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
