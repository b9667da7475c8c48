"""The two streams of a command: results to stdout, all else to stderr.

Text is printed as it is: rich's markup and emoji codes are off, because names of files, recipes and
tensors have brackets and colons of their own; color comes with `Text`. A table is never cut: where
it is wider than the terminal, the terminal breaks its lines. Off a terminal there is no color, no
padding at the ends of lines, and the width is that of `COLUMNS`, or as wide as needed.
"""

import shutil
from collections.abc import Container
from functools import cache
from typing import IO, Any, Final, Literal

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

AS_WIDE_AS_NEEDED: Final = 10_000
"""Columns of what goes into a file or a pipe, where `COLUMNS` says nothing."""


class PlainConsole(Console):
    """A console that prints text as it is, and ends no line in spaces unless on a terminal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)
        if not self.is_terminal:
            self.width = shutil.get_terminal_size((AS_WIDE_AS_NEEDED, 24)).columns

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does; off a terminal, without spaces at the ends of lines."""
        if self.is_terminal:
            super().print(*objects, **options)
            return
        with self.capture() as captured:
            super().print(*objects, **options)
        lines = captured.get().split("\n")
        self.file.write("\n".join(line.rstrip(" ") for line in lines))


@cache
def out() -> PlainConsole:
    """Where results go."""
    return PlainConsole()


@cache
def err() -> PlainConsole:
    """Where progress, notes and errors go."""
    return PlainConsole(stderr=True)


def console_to(file: IO[str]) -> PlainConsole:
    """A console that writes into a file."""
    return PlainConsole(file=file)


def plain_table(*columns: str, numbers: Container[str] = (), words: Container[str] = ()) -> Table:
    """Return an empty table without lines under a row of names.

    Args:
        columns: their names, from left to right; what they hold is never broken.
        numbers: those that are set to the right.
        words: those that are broken between words where there is no room.
    """
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in columns:
        justify: Literal["left", "right"] = "right" if name in numbers else "left"
        table.add_column(name, justify=justify, no_wrap=name not in words)
    return table


def print_table(table: Table, console: PlainConsole | None = None) -> None:
    """Print a table, in the width of the console or the least that shows every cell whole."""
    console = console or out()
    unlimited = console.options.update(width=AS_WIDE_AS_NEEDED)
    for column in table.columns:
        needs = [
            Measurement.get(console, unlimited, cell) for cell in (column.header, *column.cells)
        ]
        column.min_width = max(n.maximum if column.no_wrap else n.minimum for n in needs)
    least = Measurement.get(console, unlimited, table).minimum
    table.width = least if least > console.width else None
    console.print(table, crop=False)
