"""Read small files that anybody may have put there, without waiting for them.

A device or a pipe under a file's name would block for ever, or never end.
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
        file: a path; links are followed.

    Raises:
        OSError: where it can't be opened; EINVAL for a device, a pipe or a socket; EISDIR.
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
    """The JSON object that a file holds.

    Args:
        file: a path.

    Raises:
        OSError: as `open_regular`.
        ValueError: where it holds no JSON, or another value than an object.
    """
    return object_of(read_regular(file))


def digest(content: object) -> str:
    """SHA-256 in hex of plain data, whatever the order and the spaces it is written with."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def object_of(text: str | bytes) -> dict[str, Any]:
    """The JSON object that a text is, in UTF-8 without a mark, as all who read such files take it.

    Raises:
        ValueError: where it is no JSON, or another value than an object.
    """
    try:
        content = json.loads(text if isinstance(text, str) else text.decode())
    except RecursionError:
        raise ValueError("it is nested without end") from None
    if not isinstance(content, dict):
        raise ValueError(f"it holds {type(content).__name__} where an object should be")
    return content
