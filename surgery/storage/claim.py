"""A lock on an output: of two runs that would write the same one, the second is refused at once.

The lock is the kernel's, on a small file next to the output. It ends with the process that has it,
however that ends, so no process ids are compared, which a later process or another container may
have too. On NFS, Linux passes the lock to the server, so that it works between machines, unless
the disk is mounted with `nolock` or `local_lock`: then it works on each machine alone. On a file
system without locks the existence of an unfinished folder serves as the lock, and somebody has to
remove it after a kill.

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

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError

_NAME_BYTES: Final = 255
"""Largest length of a file's name in bytes; the same on all common file systems."""

_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_claims: ContextVar[Mapping[Path, bool]] = ContextVar("claims", default=MappingProxyType({}))


def sibling_path(out: Path, form: str) -> Path:
    """Return a path in the folder of `out` with a name made from that of `out`.

    Args:
        out: A file or a folder.
        form: Format of the name, with `{}` for the name of `out`, or its hash if that is too long.

    Raises:
        SurgeryError: A301 for the root, which has no siblings.
    """
    if not out.name:
        raise SurgeryError(diagnostic("A301.root", out=out))
    name = form.format(out.name)
    if len(os.fsencode(name)) > _NAME_BYTES:
        name = form.format(hashlib.sha256(os.fsencode(out.name)).hexdigest()[:32])
    return out.with_name(name)


@contextmanager
def claimed(out: Path) -> Iterator[bool]:
    """Lock an output path until the body ends; reentrant within the body.

    Yields whether a real lock was taken, so that an unfinished folder next to `out` has no owner.

    Args:
        out: An absolute path without links; its parent folders are made.

    Raises:
        SurgeryError: A301 for the root, A307 while another run has the lock.
        OSError: Where the lock file can't be made.
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
    """Make the parent folders of an output; those that are still empty afterwards are removed."""
    missing = [folder for folder in out.parents if not folder.exists()]
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        for folder in missing:
            with suppress(OSError):  # no longer empty
                folder.rmdir()


def _locked(file: Path, out: Path) -> tuple[int, bool]:
    """Open a file and lock it; its previous owner removes it, so it must still be at that path."""
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
    """The diagnostic for a second run on the same output.

    Args:
        out: The output of both.
        left: An unfinished folder, where no lock tells whether its run is still alive.
    """
    unless = f", or remove `{left}` if that was killed" if left else ""
    return diagnostic("A307", out=out, unless=unless)
