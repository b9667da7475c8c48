"""The name of this package on PyPI, where `surgery` belongs to another project."""

from importlib.metadata import version
from typing import Final

DISTRIBUTION: Final = "model-surgery"


def own_version() -> str:
    """The installed version of this package."""
    return version(DISTRIBUTION)


def install_line(extra: str) -> str:
    """The command that installs an extra of this package, for a diagnostic's `fix`."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"
