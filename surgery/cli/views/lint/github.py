"""Findings as annotations of GitHub Actions, one workflow command a line.

Source: docs.github.com, "Workflow commands for GitHub Actions"; the escapes are those of
`@actions/core` (command.ts): `%`, CR and LF everywhere, `:` and `,` in properties too.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from surgery.diagnostics.diagnostic import Diagnostic
from surgery.diagnostics.finding import Finding

if TYPE_CHECKING:
    from surgery.lint.report import Report

_COMMANDS: Final = {"error": "error", "warning": "warning", "note": "notice"}
_ESCAPES: Final = {"%": "%25", "\r": "%0D", "\n": "%0A"}
_ESCAPES_IN_PROPERTIES: Final = {**_ESCAPES, ":": "%3A", ",": "%2C"}


def annotations(reports: "Sequence[Report]") -> str:
    """Return one line for each finding and each error; empty where there are none."""
    lines = [_line(report, d) for report in reports for d in (*report.errors, *report.findings)]
    return "".join(f"{line}\n" for line in lines)


def _line(report: "Report", diagnostic: Diagnostic) -> str:
    properties = ",".join(
        f"{name}={_escaped(value, _ESCAPES_IN_PROPERTIES)}"
        for name, value in _properties(report, diagnostic)
    )
    parts = [
        f"{report.subject.name} for {report.target}: {diagnostic.what}",
        diagnostic.why,
        diagnostic.fix,
    ]
    if isinstance(diagnostic, Finding):
        parts += [
            diagnostic.allowed and f"allowed: {diagnostic.allowed}",
            f"{diagnostic.evidence}: {diagnostic.known_by}",
        ]
    message = _escaped("\n".join(part for part in parts if part), _ESCAPES)
    return f"::{_COMMANDS[diagnostic.severity]} {properties}::{message}"


def _properties(report: "Report", diagnostic: Diagnostic) -> Iterator[tuple[str, str]]:
    file, span = report.location_of(diagnostic)
    if file:
        yield "file", file
    if span:
        yield "line", str(span.line)
        yield "col", str(span.column)
        yield "endColumn", str(span.column + span.width)
    yield (
        "title",
        f"{diagnostic.code} {diagnostic.rule}"
        if isinstance(diagnostic, Finding)
        else diagnostic.code,
    )


def _escaped(text: str, escapes: dict[str, str]) -> str:
    return "".join(escapes.get(letter, letter) for letter in text)
