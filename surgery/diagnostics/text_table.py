"""A table as data: drawn as plain text, as HTML, or by the command line in color."""

import html
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TextTable:
    """Cells under the names of their columns.

    Args:
        columns: Names, from left to right.
        rows: Cells of each row, as many as columns.
        numbers: Names of the columns that are set to the right. None by default.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[str] = field(default_factory=frozenset)

    def __str__(self) -> str:
        cells = [list(self.columns), *map(list, self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return "\n".join(self._line(row, widths) for row in cells)

    def _line(self, row: Sequence[str], widths: Sequence[int]) -> str:
        named = zip(self.columns, row, widths, strict=True)
        padded = (
            cell.rjust(width) if name in self.numbers else cell.ljust(width)
            for name, cell, width in named
        )
        return "  ".join(padded).rstrip()

    def to_html(self) -> str:
        """The table as HTML, every cell escaped."""
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.columns)
        body = "".join(f"<tr>{self._cells(row)}</tr>" for row in self.rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _cells(self, row: Sequence[str]) -> str:
        right = ' style="text-align: right"'
        return "".join(
            f"<td{right if name in self.numbers else ''}>{html.escape(cell)}</td>"
            for name, cell in zip(self.columns, row, strict=True)
        )


def to_html(title: str, table: TextTable, *lines: str) -> str:
    """A title, a table and lines after it as HTML, all of them escaped.

    Args:
        title: Line before the table.
        table: Table.
        lines: Lines after the table.
    """
    after = "".join(f"<div>{html.escape(line)}</div>" for line in lines)
    return f"<div><b>{html.escape(title)}</b></div>{table.to_html()}{after}"
