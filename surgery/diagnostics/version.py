"""The version of this package, which asking for takes a look at its metadata."""

from typing import Final

from surgery.diagnostics.distribution import own_version

__version__: Final = own_version()
"""As pip knows it, such as `1.0.0`."""
