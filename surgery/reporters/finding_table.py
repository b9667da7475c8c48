"""What lint found, for a person: each finding at its place, or a table of many subjects."""

from collections.abc import Sequence
from io import StringIO
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from surgery.lint_report import SEVERITIES, counted
from surgery.reporters.diagnostics import coloured
from surgery.reporters.terminal import PIPED_WIDTH, err, out
from surgery.summary import human_bytes

if TYPE_CHECKING:
    from surgery.lint_fix import Fix
    from surgery.lint_report import Proof, Report
    from surgery.lint_subject import Subject

_COLOURS: Final = {
    "clean": "green",
    "warned": "yellow",
    "rejected": "bold red",
    "unknown": "bold red",
}

_LEVELS: Final = {
    "recipe": "plan",
    "graph": "plan and graphs",
    "prove": "plan, graphs and compiler",
}
_LEVELS_OF_A_FILE: Final = {"recipe": "graph", "graph": "graph", "prove": "graph and compiler"}


def print_reports(reports: "Sequence[Report]", *, overview: bool) -> None:
    """Print to the terminal.

    Args:
        reports: one for each subject and target; what could not be linted is left out of them.
        overview: one row each, instead of every finding.
    """
    (_print_overview if overview else _print_each)(reports, out())


def as_text(reports: "Sequence[Report]", *, overview: bool) -> str:
    """Return the same as text without colour."""
    text = StringIO()
    console = Console(file=text, width=PIPED_WIDTH, highlight=False)
    (_print_overview if overview else _print_each)(reports, console)
    return text.getvalue()


def print_fixes(subject: "Subject", written: "Sequence[Fix]", left: "Sequence[Fix]") -> None:
    """Say on stderr what was mended, and what the user can mend by an override."""
    for fix in written:
        err().print(f"fixed {subject.file}: {fix.key}: {fix.value}", soft_wrap=True, markup=False)
    for fix in left:
        words = f"surgery lint {subject.name} {fix}"
        err().print(f"to fix {subject.name}: {words}", soft_wrap=True, markup=False)


def _print_each(reports: "Sequence[Report]", console: Console) -> None:
    for report in reports:
        if report.errors:
            continue
        console.print(_title(report), soft_wrap=True)
        for found in report.findings:
            console.print(coloured(found), soft_wrap=True)
        if report.proofs:
            console.print(_proofs(report.proofs))
            by = ", ".join(dict.fromkeys(proof.toolchain for proof in report.proofs))
            console.print(f"compiled and emulated by {by}", style="dim", soft_wrap=True)
        console.print(_last_line(report), soft_wrap=True)


def _print_overview(reports: "Sequence[Report]", console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("recipe", "target", "verdict", "findings"):
        table.add_column(column, no_wrap=column != "findings")
    for report in reports:
        verdict = f"[{_COLOURS[report.verdict]}]{report.verdict}[/]"
        name = f"[bold]{escape(report.subject.name)}[/]"
        table.add_row(name, report.target, verdict, escape(_codes(report)))
    console.print(table)
    verdicts = [report.verdict for report in reports]
    counts = [f"{verdicts.count(word)} {word}" for word in _COLOURS if word in verdicts]
    console.print(f"Lint: {', '.join(counts)}.", soft_wrap=True)
    worst = max(reports, key=lambda report: list(_COLOURS).index(report.verdict))
    if worst.verdict != "clean":
        words = " ".join([worst.subject.name, *worst.subject.overrides])
        line = f"  next: surgery lint {words} --target {worst.target}"
        console.print(line, style="dim", soft_wrap=True, markup=False)


def _title(report: "Report") -> str:
    model = "" if report.model in ("", report.subject.name) else report.model
    on = f" on [bold]{escape(model)}[/]" if model else ""
    return f"[bold]{escape(report.subject.name)}[/]{on} for [bold]{report.target}[/]"


def _last_line(report: "Report") -> str:
    level = _LEVELS_OF_A_FILE if report.subject.kind == "graph" else _LEVELS
    verdict = f"[{_COLOURS[report.verdict]}]{report.verdict}[/]"
    return f"Lint by {level[report.level]}: {counted(report)}: {verdict}."


def _codes(report: "Report") -> str:
    if report.errors:
        return ", ".join(dict.fromkeys(f"error {error.code}" for error in report.errors))
    grave = [found for found in report.findings if found.severity != "note" or found.allowed]
    ordered = sorted(grave, key=lambda found: SEVERITIES.index(found.severity))
    words = [f"{f.severity} {f.code} {f.rule}" + " (allowed)" * bool(f.allowed) for f in ordered]
    return ", ".join(dict.fromkeys(words))


def _proofs(proofs: "Sequence[Proof]") -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("graph", "blocks", "phase", "scheme", "verdict"):
        table.add_column(column, no_wrap=True)
    for column in ("cosine", "error", "compiled", "seconds"):
        table.add_column(column, justify="right", no_wrap=True)
    for proof in proofs:
        verdict = "[green]proved[/]" if proof.passed else "[bold red]failed[/]"
        table.add_row(
            escape(proof.form),
            str(proof.blocks or ""),
            proof.phase,
            proof.scheme,
            verdict,
            "" if proof.cosine is None else f"{proof.cosine:.6f}",
            "" if proof.error is None else f"{proof.error:.1e}",
            human_bytes(proof.context_bytes) if proof.context_bytes else "",
            f"{proof.seconds:.1f}",
        )
    return table
