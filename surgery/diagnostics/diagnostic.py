"""One type for errors, plan conflicts and lint findings.

A stage collects all its diagnostics and raises them together in one `SurgeryError`, so that a user
fixes a recipe in one go. The first letter of a code names its family, and the family gives the
exit code: R recipe, P plan, T training and D data are user input (2); M model, A adapter files and
X the toolchain and its graphs are the environment (3); V is a failed verification and L a failed
lint (1). A file that is missing or can't be read is the environment, wherever it is named: a data
file or an image as well as a model or an adapter.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

EXIT_DONE: Final = 0
EXIT_NO: Final = 1
EXIT_USAGE: Final = 2
EXIT_ENVIRONMENT: Final = 3
EXIT_INTERRUPTED: Final = 130

_EXIT_BY_FAMILY: Final = {
    "R": EXIT_USAGE,
    "P": EXIT_USAGE,
    "T": EXIT_USAGE,
    "D": EXIT_USAGE,
    "M": EXIT_ENVIRONMENT,
    "A": EXIT_ENVIRONMENT,
    "X": EXIT_ENVIRONMENT,
    "V": EXIT_NO,
    "L": EXIT_NO,
}

_EXIT_BY_CODE: Final = dict.fromkeys(("D101", "D105", "D106", "R133"), EXIT_ENVIRONMENT)
"""Files that are missing or can't be read, in families of user input."""

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Span:
    """A position in a file or in a command-line override.

    Args:
        file: Path as the user would type it, or `<override 3>`.
        line: Line number, from 1.
        column: Column number, from 1.
        text: The complete line, for the excerpt.
        width: Number of characters to underline, at least 1.
    """

    file: str
    line: int
    column: int
    text: str
    width: int = 1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    def marked(self) -> str:
        """The underlined characters."""
        return self.text[self.column - 1 : self.column - 1 + self.width]

    def excerpt(self) -> str:
        """The line and a row of carets under the marked characters."""
        gutter = f"{self.line:>5} | "
        blank = " " * (len(gutter) - 2) + "| "
        return f"{gutter}{self.text}\n{blank}{' ' * (self.column - 1)}{'^' * max(1, self.width)}"


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One message to the user.

    Args:
        code: A letter and three digits; `surgery explain CODE` prints its page.
        what: One sentence without a full stop.
        why: The reason, where `what` doesn't show it.
        fix: How to fix it.
        span: The position in a file or override; None where there is none.
        severity: `error`, `warning` or `note`; only errors stop a command.
        key: Dotted name of a recipe key, such as `operations.copies.blocks`, which the recipe
            turns into `span`.
    """

    code: str
    what: str
    why: str = ""
    fix: str = ""
    span: Span | None = None
    severity: Severity = "error"
    key: str = ""

    def __str__(self) -> str:
        location = f"{self.span}: " if self.span else ""
        lines = [f"{location}{self.severity}[{self.code}]: {self.what}"]
        if self.span and self.severity != "note":
            lines.append(self.span.excerpt())
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        if self.severity == "error":
            lines.append(f"  see: surgery explain {self.code}")
        return "\n".join(lines)


class SurgeryError(Exception):
    """One or more diagnostics that stop a command.

    Args:
        diagnostics: At least one; the exit code is that of the first.
    """

    __module__ = "surgery"  # as tracebacks name it

    def __init__(self, diagnostics: Diagnostic | Iterable[Diagnostic]) -> None:
        given = [diagnostics] if isinstance(diagnostics, Diagnostic) else diagnostics
        self.diagnostics: tuple[Diagnostic, ...] = tuple(given)
        super().__init__(self.diagnostics)

    def __str__(self) -> str:
        return "\n".join(str(diagnostic) for diagnostic in self.diagnostics)

    @property
    def exit_code(self) -> int:
        """The exit code that a command ends with: 1, 2 or 3."""
        code = self.diagnostics[0].code
        return _EXIT_BY_CODE.get(code, _EXIT_BY_FAMILY[code[0]])


def some_of(names: Sequence[str], shown: int = 3) -> str:
    """Return the first few names and how many more there are, such as `a, b, c and 4 more`."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{', '.join(names[:shown])}{more}"


def raise_errors(diagnostics: Iterable[Diagnostic]) -> None:
    """Raise the errors among `diagnostics` together.

    Raises:
        SurgeryError: If any of them is an error; it has the errors alone.
    """
    errors = [diagnostic for diagnostic in diagnostics if diagnostic.severity == "error"]
    if errors:
        raise SurgeryError(errors)
