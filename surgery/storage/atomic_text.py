"""Write one file so that it is either the old one or the new one, never half of it.

Source: rename(2), which within one folder is atomic.
"""

import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.storage.claim import sibling_path
from surgery.storage.disk_errors import io_errors
from surgery.storage.inputs import Input, refuse_inputs

_PROBE_BYTES: Final = 8192
"""Bytes at the start of an existing file among which a zero byte means that it is binary."""


def replace_text(
    file: Path, text: str, *, inputs: Iterable[Input] = (), expected: str | None = None
) -> None:
    """Write a text file atomically, line ends unchanged; an existing file keeps its permissions.

    Args:
        file: Path to write, in an existing folder. A device or a pipe is written to directly.
        text: The complete content.
        inputs: Files and folders that the content was made from.
        expected: Present content of the file; None, the default, replaces any.

    Raises:
        SurgeryError: A301 for an existing binary file, A302 to A304 for disk errors, A306 where it
            would overwrite an input, A308 where the present content is not the expected one.
    """
    refuse_inputs(file, inputs)
    with io_errors(file):
        if file.exists() and not file.is_file() and not file.is_dir():
            file.write_bytes(text.encode(errors="backslashreplace"))
            return
        _refuse_binary(file)
        content = text.encode(errors="backslashreplace")
        replace_bytes(file, content, expected=None if expected is None else expected.encode())


def try_text(file: Path, *, inputs: Iterable[Input] = ()) -> None:
    """Raise before the work what `replace_text` would raise after it.

    Args:
        file: As for `replace_text`; it is not changed.
        inputs: As for `replace_text`.

    Raises:
        SurgeryError: As `replace_text`.
    """
    refuse_inputs(file, inputs)
    with io_errors(file):
        if file.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), file)
        if file.exists() and not file.is_file():
            return
        _refuse_binary(file)
        partial = _partial(file)
        try:
            partial.open("xb").close()
        except OSError as error:
            error.filename = str(file)
            raise
        partial.unlink()


def create_text(file: Path, text: str) -> None:
    """Write a new file; a dangling link counts as an existing one.

    Raises:
        SurgeryError: A301 where the path exists, A302 to A304 for disk errors.
    """
    with io_errors(file), file.open("xb") as stream:
        try:
            stream.write(text.encode(errors="backslashreplace"))
            stream.flush()
        except BaseException:
            file.unlink()
            raise


def replace_bytes(file: Path, content: bytes, *, expected: bytes | None = None) -> None:
    """Write a file completely, or leave the old one; see `replaced`."""
    with replaced(file, expected=expected) as partial, partial.open("xb") as stream:
        stream.write(content)


@contextmanager
def replaced(file: Path, *, expected: bytes | None = None) -> Iterator[Path]:
    """Yield a path to write; when the body ends, it replaces the file atomically.

    Where the body raises, the file stays as it was.

    Args:
        file: Path that need not exist; of a link, its target is replaced.
        expected: Present content of the file; None, the default, replaces any.

    Raises:
        OSError: Where the file can't be written; it names `file`.
        SurgeryError: A308 where the present content is not the expected one.
    """
    file = Path(os.path.realpath(file))
    partial = _partial(file)
    try:
        yield partial
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        if file.exists():
            shutil.copymode(file, partial)
        if expected is not None and not (file.exists() and file.read_bytes() == expected):
            raise SurgeryError(diagnostic("A308.file", file=file))
        partial.replace(file)
    except OSError as error:
        error.filename = str(file)
        raise
    finally:
        partial.unlink(missing_ok=True)


def _partial(file: Path) -> Path:
    real = Path(os.path.realpath(file))
    return sibling_path(real, f".{{}}.partial-{secrets.token_hex(4)}")


def _refuse_binary(file: Path) -> None:
    if not file.is_file():
        return
    with file.open("rb") as stream:
        if b"\0" in stream.read(_PROBE_BYTES):
            raise SurgeryError(diagnostic("A301.binary", file=file))
