"""What pip calls this package: the import is `surgery`, a name that is another project's there."""

from importlib.metadata import version
from typing import Final

DISTRIBUTION: Final = "model-surgery"


def own_version() -> str:
    """The installed version of this package."""
    return version(DISTRIBUTION)


def install_line(extra: str) -> str:
    """The command that installs an extra of this package, as a remedy."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"
