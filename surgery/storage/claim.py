"""The claim on an output: of two runs that would make the same one, the second is refused at once.

The claim is the kernel's lock on a small file beside the output. It ends with the process that has
it, however that ends, so nobody judges by process numbers, which a later process or another
container may have too. On NFS, Linux passes the lock to the server, so that it holds between
machines, unless the disk is mounted with `nolock` or `local_lock`: then it holds on each machine
alone, as no other sign would. A file system without locks has the mere existence of unfinished
work as its claim, which somebody has to remove after a kill.

Source: flock(2), nfs(5).
"""

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import Final

from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError

_NAME_BYTES: Final = 255
"""Bytes of a file's name, at most; the same on all common file systems."""

_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_claims: ContextVar[Mapping[Path, bool]] = ContextVar("claims", default=MappingProxyType({}))


def sibling_path(out: Path, form: str) -> Path:
    """Return the place beside `out` that is named after it.

    Args:
        out: a file or a folder.
        form: its name, with `{}` for the name of `out`; a hash stands for one that is too long.

    Raises:
        SurgeryError: A301 for the root, beside which there is nothing.
    """
    if not out.name:
        raise SurgeryError(Diagnostic("A301", f"`{out}` is the root", fix="name a folder in it"))
    name = form.format(out.name)
    if len(os.fsencode(name)) > _NAME_BYTES:
        name = form.format(hashlib.sha256(os.fsencode(out.name)).hexdigest()[:32])
    return out.with_name(name)


@contextmanager
def claimed(out: Path) -> Iterator[bool]:
    """Claim the place of an output until the body ends; within the body it may be claimed again.

    Yields whether a lock vouches for the claim, so that unfinished work beside `out` is nobody's.

    Args:
        out: an absolute path without links; the folders around it are made.

    Raises:
        SurgeryError: A301 for the root, A307 while another run has it.
        OSError: where the disk doesn't let it.
    """
    claims = _claims.get()
    if out in claims:
        yield claims[out]
        return
    with _folders_around(out):
        file = sibling_path(out, ".{}.lock")
        descriptor, is_locked = _locked(file, out)
        token = _claims.set({**claims, out: is_locked})
        try:
            yield is_locked
        finally:
            _claims.reset(token)
            file.unlink(missing_ok=True)
            os.close(descriptor)


@contextmanager
def _folders_around(out: Path) -> Iterator[None]:
    """Make the folders around an output; those that are still empty afterwards go again."""
    missing = [folder for folder in out.parents if not folder.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for folder in missing:
            with suppress(OSError):  # somebody's, by now
                folder.rmdir()


def _locked(file: Path, out: Path) -> tuple[int, bool]:
    """Open a file and lock it; who had it before removes it, so it must still be the one there."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(descriptor, file):
                return descriptor, True
            os.close(descriptor)
        except BlockingIOError as error:
            os.close(descriptor)
            raise SurgeryError(already_running(out)) from error
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return descriptor, False
            os.close(descriptor)
            raise


def _is_at(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    except FileNotFoundError:
        return False


def already_running(out: Path, left: Path | None = None) -> Diagnostic:
    """What is wrong with beginning a second run.

    Args:
        out: what both would make.
        left: unfinished work, where no lock tells whether its run is still on.
    """
    unless = f", or remove `{left}` if that was killed" if left else ""
    return Diagnostic(
        code="A307",
        what=f"another run is making `{out}`",
        why="two runs at once would undo each other's work",
        fix=f"wait until it is done{unless}, or choose another `--out`",
    )
