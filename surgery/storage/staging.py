"""Make a folder that is either complete or absent.

Source: rename(2) and fsync(2): a rename within one file system is atomic, and durable once the
folder that holds the name is synced.
"""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.storage.claim import already_running, claimed, sibling_path
from surgery.storage.disk_errors import io_errors
from surgery.storage.inputs import Input, refuse_inputs

SIGNATURES: Final = ("plan.json", "assembly.json")
"""Files of which any one marks a folder as written by `surgery`."""


@contextmanager
def staged_folder(
    out: Path, *, overwrite: bool = False, inputs: Iterable[Input] = ()
) -> Iterator[Path]:
    """Yield a new folder next to `out` that is renamed to `out` when the body is done.

    It is removed where the body raises, also by Ctrl-C. A killed process leaves it under a name
    that begins with a dot, which the next call for the same `out` removes. An `OSError` in the body
    becomes a `SurgeryError` as in `io_errors`.

    Args:
        out: The folder to make, with its parents; it may exist empty.
        overwrite: Whether to replace a folder that `surgery` wrote; the old one stays until the new
            one is complete.
        inputs: Files and folders that are read to make it.

    Raises:
        SurgeryError: A301 where `out` is a file or has files in it, also when the body is done;
            A305 where `overwrite` would remove a folder without any of `SIGNATURES`; A308 where it
            would remove another folder than the one found at the start; and those of
            `claimed_output` and `io_errors`.
    """
    refuse_inputs(out, inputs)
    out = Path(os.path.realpath(out))
    with io_errors(out), claimed(out) as is_locked:
        staging = sibling_path(out, ".{}.partial")
        _tidy(out, staging, is_locked)
        refuse_occupied(out, overwrite)
        before = _identity(out)
        staging.mkdir()
        try:
            yield staging
            _open_weights(staging)
            _sync_tree(staging)
            _put_in_place(staging, out, before)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


@contextmanager
def claimed_output(out: Path, inputs: Iterable[Input]) -> Iterator[bool]:
    """Lock `out` for work that ends in a `staged_folder` or in files.

    Yields whether unfinished folders next to `out` have no owner, as `claimed` does.

    Args:
        out: Path of the output folder, relative or absolute.
        inputs: Files and folders that are read to make it.

    Raises:
        SurgeryError: A306 where `out` would overwrite an input, A307 while another run makes it,
            and those of `io_errors`.
    """
    refuse_inputs(out, inputs)
    real = Path(os.path.realpath(out))
    with ExitStack() as stack:
        with io_errors(real):
            is_locked = stack.enter_context(claimed(real))
        yield is_locked


def discard(folder: Path) -> None:
    """Remove a folder, if it exists; if killed in between, it is complete or gone.

    What remains then has a name that the next `staged_folder` for the same path removes.

    Args:
        folder: Path of the folder, which the caller has locked.
    """
    garbage = discarded(folder)
    if folder.exists():
        if garbage.exists():
            shutil.rmtree(garbage)
        folder.rename(garbage)
    shutil.rmtree(garbage, ignore_errors=True)


def discarded(folder: Path) -> Path:
    """Path of a folder while `discard` removes it."""
    return sibling_path(folder, ".{}.partial")


def resume_folder(staging: Path) -> Path:
    """Return the folder for intermediate results that a later run of the same output resumes from.

    Args:
        staging: The folder that `staged_folder` yielded; it is the same for the same `out`.
    """
    return staging.with_name(f"{staging.name.removesuffix('.partial')}.work")


def refuse_occupied(out: Path, overwrite: bool) -> None:
    """Refuse an output that exists and may not be replaced: A301, A304 and A305."""
    try:
        os.lstat(out)
    except (FileNotFoundError, NotADirectoryError):
        return
    if not out.is_dir():
        raise SurgeryError(diagnostic("A301.is_a_file", out=out))
    if os.path.ismount(out):
        raise SurgeryError(diagnostic("A304.mount_point", out=out))
    if not any(out.iterdir()):
        return
    if not overwrite:
        raise SurgeryError(diagnostic("A301.not_empty", out=out))
    if not any((out / name).is_file() for name in SIGNATURES):
        raise SurgeryError(
            diagnostic("A305.folder", out=out, signatures=" and no ".join(SIGNATURES))
        )


def refuse_result(folder: Path) -> None:
    """Refuse, with A301, to add files to a folder that a command wrote and may replace."""
    if any((folder / name).is_file() for name in SIGNATURES):
        raise SurgeryError(diagnostic("A301.other_result", folder=folder))


def _identity(out: Path) -> tuple[int, ...] | None:
    """What distinguishes a folder from a later one at its path, or one with other files in it."""
    if not out.is_dir() or not any(out.iterdir()):
        return None
    status = os.stat(out)
    return status.st_dev, status.st_ino, status.st_mtime_ns


def _put_in_place(staging: Path, out: Path, before: tuple[int, ...] | None) -> None:
    """Rename `staging` to `out`, which must be as it was when the work began.

    An old `out` is renamed first. While `staging` exists, the renamed folder is still the last
    good one; afterwards it is superseded, and `_tidy` relies on that.
    """
    replaced = sibling_path(out, ".{}.replaced")
    if before and out.exists():
        out.rename(replaced)
    try:
        if replaced.exists() and _identity(replaced) != before:
            raise SurgeryError(diagnostic("A308.folder", out=out))
        _rename(staging, out)
    except BaseException:
        if replaced.exists():
            _restore(replaced, out)
        raise
    _sync(out.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _rename(staging: Path, out: Path) -> None:
    """Rename, which the kernel refuses where `out` has become a file or a folder with files."""
    try:
        staging.rename(out)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise SurgeryError(diagnostic("A301.appeared", out=out)) from error
        raise


def _restore(replaced: Path, out: Path) -> None:
    """Rename the replaced folder back to `out`, or to a sibling name that is never removed."""
    try:
        replaced.rename(out)
    except OSError:
        replaced.rename(sibling_path(out, f"{{}}.before-{secrets.token_hex(4)}"))


def _tidy(out: Path, staging: Path, is_locked: bool) -> None:
    """Remove unfinished folders of killed processes, and restore a last good one."""
    if not is_locked:
        if staging.exists():
            raise SurgeryError(already_running(out, staging))
        return
    unfinished, replaced_folders = _leftovers(out, "partial"), _leftovers(out, "replaced")
    for replaced in replaced_folders:
        if unfinished or not out.exists():
            _restore(replaced, out)
    for leftover in (*unfinished, *replaced_folders):
        shutil.rmtree(leftover, ignore_errors=True)


def _leftovers(out: Path, role: str) -> list[Path]:
    """Folders that killed runs left next to `out`; older versions added numbers to the name."""
    new, old = (
        sibling_path(out, f".{{}}.{role}"),
        rf"\.{re.escape(out.name)}\.{role}-\d+-[0-9a-f]{{8}}",
    )
    siblings = [*out.parent.iterdir()]
    return [path for path in siblings if path == new or re.fullmatch(old, path.name)]


def _open_weights(folder: Path) -> None:
    """Give weights the mode of any new file; safetensors makes them readable by the owner alone."""
    probe = folder / f".mode-{secrets.token_hex(4)}"
    probe.touch()
    mode = probe.stat().st_mode & 0o777
    probe.unlink()
    for file in folder.rglob("*.safetensors"):
        if not file.is_symlink() and file.stat().st_nlink == 1:
            file.chmod(mode)


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
