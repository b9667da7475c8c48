"""Tensors by name, and a file of them that two processes share."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

Arrays = Mapping[str, np.ndarray[Any, Any]]
"""Tensors by the names of a graph's inputs or outputs."""
BRANCH: Final = "branch"
"""Names the folder of a branch's samples next to the others, and the file of its inputs."""
_PREFIX = "="
"""Before each name, since numpy keeps some names, such as `file`, to itself."""


def write_arrays(file: Path, arrays: Arrays) -> None:
    """Write them into an npz file, whatever their names are."""
    prefixed: dict[str, Any] = {f"{_PREFIX}{name}": array for name, array in arrays.items()}
    with file.open("wb") as stream:  # under its own name, whatever that ends in
        np.savez(stream, **prefixed)


def read_arrays(file: Path) -> Arrays:
    """Read what `write_arrays` wrote; nothing where there is no file."""
    if not file.is_file():
        return {}
    with np.load(file) as found:
        return {name.removeprefix(_PREFIX): array for name, array in found.items()}
