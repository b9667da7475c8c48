"""Whether a name that a file says leads out of the folder that it is relative to.

What is read may come from anywhere, so that it shows and runs no files but those of its own folder.
"""

import os
from pathlib import Path, PurePosixPath, PureWindowsPath


def escapes(name: str, folder: Path | None = None) -> bool:
    """Whether a name is absolute or goes up, on any system, or leads out through a link.

    Args:
        name: need not exist.
        folder: where links are followed as well. None judges by the name alone, as where links are
            the user's own, or the hub's cache is made of them.
    """
    kinds = (PurePosixPath(name), PureWindowsPath(name))
    if any(path.anchor or ".." in path.parts for path in kinds):
        return True
    if folder is None or not os.path.exists(folder / name):
        return False
    return not (folder / name).resolve().is_relative_to(folder.resolve())
