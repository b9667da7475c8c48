"""Write one text file so that it is either the old one or the new one, never half of it.

Source: rename(2), which within one folder is atomic.
"""

import os
import shutil
from pathlib import Path

from surgery.staging import io_errors


def replace_text(file: Path, text: str) -> None:
    """Write a file, line ends as they are in the text; an old one keeps its permissions.

    Args:
        file: what to write; its folder must be there.
        text: all of it.

    Raises:
        SurgeryError: A302 to A304 for the disk.
    """
    file = Path(os.path.realpath(file))
    partial = file.with_name(f".{file.name}.partial-{os.getpid()}")
    with io_errors(file):
        try:
            partial.write_bytes(text.encode())
            if file.exists():
                shutil.copymode(file, partial)
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
