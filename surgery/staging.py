"""Make a folder that is either whole or not there, and say what is wrong with a disk.

Source: rename(2) and fsync(2): a rename within one file system is atomic, and durable once the
folder that holds the name is synced.
"""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from surgery.diagnostic import Diagnostic, SurgeryError

SIGNATURES: Final = ("plan.json", "assembly.json")
"""The files by any of which a folder is known as one that `surgery` wrote."""


@contextmanager
def io_errors(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turn an `OSError` from writing at `path` into a `SurgeryError`.

    An `OSError` without a number comes from a library rather than the disk, and passes.

    Args:
        path: what is written.
        needed: bytes that the work wants in all, for the message on a full disk.

    Raises:
        SurgeryError: A301 exists, A302 disk full, A303 no permission, A304 otherwise.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise SurgeryError(_io_diagnostic(error, path, needed)) from error


def check_free_space(path: Path, needed: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Args:
        path: where it will be; its nearest existing parent is asked.
        needed: bytes.

    Raises:
        SurgeryError: A302.
    """
    if _free_bytes(path) < needed:
        raise SurgeryError(_disk_full(path, needed))


@contextmanager
def staged_folder(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a fresh folder beside `out` that becomes `out` when the body is done.

    Where the body raises, also by Ctrl-C, it is removed. A killed process leaves it under a name
    that begins with a dot; the next call for the same `out` removes that. An `OSError` in the body
    becomes a `SurgeryError` as in `io_errors`.

    Args:
        out: the folder to make, with its parents; it may exist empty.
        overwrite: replace a folder that `surgery` wrote; the old one stays until the new is whole.

    Raises:
        SurgeryError: A301 where `out` is a file or holds files, A305 where `overwrite` would remove
            a folder without any of `SIGNATURES`, and those of `io_errors`.
    """
    out = Path(os.path.realpath(out))
    with io_errors(out):
        _tidy(out)
        refuse_occupied(out, overwrite)
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = _sibling(out, "partial")
        staging.mkdir()
        try:
            yield staging
            _sync_tree(staging)
            _put_in_place(staging, out)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


def kept_beside(staging: Path) -> Path:
    """Return the folder in which work is kept from one try to the next, for a folder being made.

    Args:
        staging: what `staged_folder` gave; the same `out` has always the same folder beside it.
    """
    return staging.with_name(f"{staging.name.rpartition('.partial-')[0]}.work")


def _sibling(out: Path, role: str) -> Path:
    return out.with_name(f".{out.name}.{role}-{os.getpid()}-{secrets.token_hex(4)}")


def refuse_occupied(out: Path, overwrite: bool) -> None:
    """Refuse a folder that may not be made: A301 and A305, as `staged_folder` does."""
    if not os.path.lexists(out):
        return
    if not out.is_dir():
        what, fix = f"`{out}` is a file, not a folder", "choose another `--out`"
        raise SurgeryError(Diagnostic("A301", what, fix=fix))
    if not any(out.iterdir()):
        return
    if not overwrite:
        what, fix = f"`{out}` exists and is not empty", "choose another `--out`, or `--overwrite`"
        raise SurgeryError(Diagnostic("A301", what, fix=fix))
    if not any((out / name).is_file() for name in SIGNATURES):
        raise SurgeryError(
            Diagnostic(
                "A305",
                f"`{out}` is not a folder that surgery wrote, and is not overwritten",
                why=f"it holds no {' and no '.join(SIGNATURES)}",
                fix="choose another `--out`, or remove the folder yourself",
            )
        )


def _put_in_place(staging: Path, out: Path) -> None:
    """Rename `staging` to `out`; an old `out` steps aside first, and returns if that fails."""
    aside = _sibling(out, "replaced")
    try:
        if out.is_dir() and any(out.iterdir()):
            out.rename(aside)
        staging.rename(out)
    except BaseException:
        if aside.exists() and not out.exists():
            aside.rename(out)
        raise
    _sync(out.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _tidy(out: Path) -> None:
    """Clear what killed processes left: their new folders go, a last good one comes back."""
    if not out.parent.is_dir():
        return
    pattern = re.compile(rf"\.{re.escape(out.name)}\.(partial|replaced)-(\d+)-[0-9a-f]{{8}}")
    for sibling in list(out.parent.iterdir()):
        match = pattern.fullmatch(sibling.name)
        if not match or _is_alive(int(match[2])):
            continue
        if match[1] == "replaced" and not out.exists():
            sibling.rename(out)
        else:
            shutil.rmtree(sibling, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder):
        for name in names:
            _sync(Path(parent, name))
        _sync(Path(parent))


def _sync(path: Path) -> None:
    if path.is_symlink():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free_bytes(path: Path) -> int:
    path = path.absolute()
    folder = next(parent for parent in (path, *path.parents) if os.path.exists(parent))
    return shutil.disk_usage(folder).free


def _disk_full(path: Path, needed: int | None) -> Diagnostic:
    free = _free_bytes(path)
    needs = f"{needed:,} bytes are needed, " if needed is not None else ""
    return Diagnostic(
        "A302",
        f"the disk is full: no room for `{path}`",
        why=f"{needs}{free:,} are free",
        fix="make room, or choose an `--out` on another disk",
    )


def _io_diagnostic(error: OSError, path: Path, needed: int | None) -> Diagnostic:
    place = Path(os.fsdecode(error.filename)) if error.filename else path
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _disk_full(path, needed)
    if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
        return Diagnostic("A301", f"`{place}` exists already", fix="choose another `--out`")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        what = f"no permission to write `{place}`"
        return Diagnostic("A303", what, reason, "choose an `--out` that you may write to")
    return Diagnostic(
        "A304", f"`{place}` cannot be written", reason, "check the disk and the mount"
    )
