"""Read small files of unknown origin without blocking.

A device or a pipe at a file's path would block forever, or never end.
"""

import errno
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO


def open_regular(file: Path) -> BinaryIO:
    """Open a regular file for reading bytes.

    Args:
        file: Path of the file; links are followed.

    Raises:
        OSError: Where it can't be opened; EINVAL for a device, a pipe or a socket; EISDIR.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    stream = os.fdopen(descriptor, "rb")  # which refuses a folder
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        stream.close()
        raise OSError(errno.EINVAL, "it is a device or a pipe, not a file", str(file))
    return stream


def read_regular(file: Path) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: as `open_regular`.
    """
    with open_regular(file) as stream:
        return stream.read()


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        file: Path of the file.

    Raises:
        OSError: As `open_regular`.
        ValueError: Where its content isn't JSON, or isn't an object.
    """
    return object_of(read_regular(file))


def digest(content: object) -> str:
    """SHA-256 in hex of plain data, independent of key order and whitespace."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def object_of(text: str | bytes) -> dict[str, Any]:
    """Parse a JSON object, in UTF-8 without a byte-order mark.

    Raises:
        ValueError: Where the text isn't JSON, or isn't an object.
    """
    try:
        content = json.loads(text if isinstance(text, str) else text.decode())
    except RecursionError:
        raise ValueError("it is nested without end") from None
    if not isinstance(content, dict):
        raise ValueError(f"it holds {type(content).__name__} where an object should be")
    return content
