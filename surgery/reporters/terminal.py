"""The two streams of a command: results to stdout, all else to stderr.

Colour only on a terminal, and not where `NO_COLOR` is set; rich sees to both. What is piped is as
wide as it needs to be.
"""

from functools import cache

from rich.console import Console

PIPED_WIDTH = 120
"""Columns of what goes into a file."""


@cache
def out() -> Console:
    """Where results go."""
    console = Console(highlight=False, soft_wrap=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPED_WIDTH)


@cache
def err() -> Console:
    """Where progress, notes and errors go."""
    console = Console(stderr=True, highlight=False)
    return console if console.is_terminal else Console(stderr=True, width=PIPED_WIDTH)
