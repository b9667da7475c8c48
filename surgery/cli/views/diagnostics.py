"""Diagnostics for a person: the place, the line, what, why and the remedy."""

from collections.abc import Iterable

from rich.text import Text

from surgery.cli.views.terminal import err
from surgery.diagnostics.diagnostic import Diagnostic

_COLORS = {"error": "bold red", "warning": "bold yellow", "note": "bold blue"}


def print_diagnostics(diagnostics: Iterable[Diagnostic]) -> None:
    """Print each diagnostic to stderr."""
    for diagnostic in diagnostics:
        err().print(colored(diagnostic), soft_wrap=True)


def colored(diagnostic: Diagnostic) -> Text:
    """A diagnostic as text that a terminal shows in color."""
    text = Text(str(diagnostic))
    text.highlight_words(
        [f"{diagnostic.severity}[{diagnostic.code}]"], _COLORS[diagnostic.severity]
    )
    text.highlight_regex(r"(?m)^ +\| +\^+$", "red")
    text.highlight_regex(r"(?m)^  (why|fix|see|at|allowed|proved|table|doc|report):", "bold")
    return text
