"""Disk errors as diagnostics, and the check of free space before a write."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError

_NEARLY_FULL_BYTES: Final = 1 << 20
"""Free bytes below which a write that failed without a reason met a full disk."""


@contextmanager
def io_errors(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turn an `OSError` from writing at `path` into a `SurgeryError`.

    So are the errors that safetensors and torch raise instead. An `OSError` without an errno, or
    of a connection, comes from a library rather than the disk, and passes.

    Args:
        path: File or folder that is written.
        needed: Required space in bytes, for the message on a full disk; None if unknown.

    Raises:
        SurgeryError: A301 exists, A302 disk full, A303 no permission, A304 otherwise.
    """
    try:
        yield
    except Exception as error:
        number = _number(error, path)
        if number is None:
            raise
        raise SurgeryError(_io_diagnostic(number, error, path, needed)) from error


def check_free_space(path: Path, needed: int) -> None:
    """Refuse a write that is larger than the free space.

    Args:
        path: Path to write; the disk is that of its nearest existing parent.
        needed: Required space in bytes.

    Raises:
        SurgeryError: A302.
    """
    if _free_bytes(path) < needed:
        raise SurgeryError(_disk_full(path, needed))


def _free_bytes(path: Path) -> int:
    path = path.absolute()
    folder = next(parent for parent in (path, *path.parents) if os.path.exists(parent))
    return shutil.disk_usage(folder).free


def _disk_full(path: Path, needed: int | None) -> Diagnostic:
    free = _free_bytes(path)
    needs = f"{needed:,} bytes are needed, " if needed is not None else ""
    return diagnostic("A302", path=path, needs=needs, free=free)


def _number(error: Exception, path: Path) -> int | None:
    """The errno behind an exception; None where it is no disk error."""
    if isinstance(error, OSError):
        return None if isinstance(error, ConnectionError | TimeoutError) else error.errno
    match = re.search(r"\(os error (\d+)\)", str(error))
    if type(error).__name__ == "SafetensorError" and match:
        return int(match[1])
    if isinstance(error, RuntimeError) and "inline_container.cc" in str(error):  # torch.save
        return errno.ENOSPC if _free_bytes(path) < _NEARLY_FULL_BYTES else errno.EIO
    return None


def _io_diagnostic(number: int, error: Exception, path: Path, needed: int | None) -> Diagnostic:
    filename = getattr(error, "filename", None)
    location = Path(os.fsdecode(filename)) if filename else path
    reason = getattr(error, "strerror", None) or str(error)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return _disk_full(path, needed)
    if number in (errno.EEXIST, errno.ENOTEMPTY):
        return diagnostic("A301.exists", path=location)
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return diagnostic("A303", location=location, reason=reason)
    why, fix = _unwritable(number, location, reason)
    return diagnostic("A304.unwritable", path=location, reason=why, fix=fix)


def _unwritable(number: int, location: Path, reason: str) -> tuple[str, str]:
    """Why a path cannot be written, and the fix: the path may be at fault, or the disk."""
    parents = location.absolute().parents
    absent = [folder for folder in parents if not os.path.lexists(folder)]
    blocking = [
        folder for folder in parents if os.path.exists(folder) and not os.path.isdir(folder)
    ]
    if number == errno.EISDIR:
        return "it is a folder, and a file is written", "name a file"
    if number == errno.ENOTDIR and blocking:
        return f"`{blocking[0]}` is a file, not a folder", "choose another path"
    if number == errno.ENOENT and absent:
        return f"there is no folder `{absent[0]}`", f"make it first: mkdir -p {absent[0]}"
    return reason, "check the disk and the mount"
