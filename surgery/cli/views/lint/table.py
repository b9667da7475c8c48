"""What lint found, for a person: each finding at its place, or a table of many subjects."""

from collections.abc import Sequence
from io import StringIO
from typing import TYPE_CHECKING, Final

from rich.table import Table
from rich.text import Text

from surgery.cli.views.diagnostics import colored
from surgery.cli.views.terminal import (
    PlainConsole,
    console_to,
    err,
    out,
    plain_table,
    print_table,
)
from surgery.lint.report import SEVERITIES, counted_findings
from surgery.plan.summary import human_bytes

if TYPE_CHECKING:
    from surgery.lint.fixes import Fix
    from surgery.lint.report import Proof, Report
    from surgery.lint.subject import Subject

_COLORS: Final = {
    "clean": "green",
    "warned": "yellow",
    "rejected": "bold red",
    "unknown": "bold red",
}

_NUMBERS_OF_A_PROOF: Final = ("cosine", "error", "compiled", "seconds")
_LEVELS: Final = {
    "recipe": "plan",
    "graph": "plan and graphs",
    "prove": "plan, graphs and compiler",
}
_LEVELS_OF_A_FILE: Final = {"graph": "graph", "prove": "graph and compiler"}
_OUTCOMES: Final = {
    "proved": "green",
    "near": "yellow",
    "undecided": "yellow",
    "failed": "bold red",
}


def print_reports(reports: "Sequence[Report]", *, overview: bool) -> None:
    """Print to the terminal.

    Args:
        reports: one for each subject and target; what could not be linted is left out of them.
        overview: one row each, instead of every finding.
    """
    (_print_overview if overview else _print_each)(reports, out())


def as_text(reports: "Sequence[Report]", *, overview: bool) -> str:
    """Return the same as text without color."""
    text = StringIO()
    (_print_overview if overview else _print_each)(reports, console_to(text))
    return text.getvalue()


def print_fixes(subject: "Subject", written: "Sequence[Fix]", left: "Sequence[Fix]") -> None:
    """Say on stderr what was corrected, and what the user can correct by an override."""
    for fix in written:
        err().print(f"fixed {subject.file}: {fix.key}: {fix.value}", soft_wrap=True)
    for fix in left:
        words = f"surgery lint {subject.name} {fix}"
        err().print(f"to fix {subject.name}: {words}", soft_wrap=True)


def _print_each(reports: "Sequence[Report]", console: PlainConsole) -> None:
    for report in reports:
        if report.errors:
            continue
        console.print(_title(report), soft_wrap=True)
        for found in report.findings:
            console.print(colored(found), soft_wrap=True)
        if report.proofs:
            print_table(_proofs(report.proofs), console)
            by = ", ".join(dict.fromkeys(proof.toolchain for proof in report.proofs))
            console.print(f"compiled and emulated by {by}", style="dim", soft_wrap=True)
        console.print(_last_line(report), soft_wrap=True)


def _print_overview(reports: "Sequence[Report]", console: PlainConsole) -> None:
    table = plain_table("recipe", "target", "verdict", "findings", words=("findings",))
    for report in reports:
        name = Text(report.subject.name, "bold")
        table.add_row(name, report.target, _verdict(report), _codes(report))
    print_table(table, console)
    verdicts = [report.verdict for report in reports]
    counts = [f"{verdicts.count(word)} {word}" for word in _COLORS if word in verdicts]
    console.print(f"Lint: {', '.join(counts)}.", soft_wrap=True)
    worst = max(reports, key=lambda report: list(_COLORS).index(report.verdict))
    if worst.verdict != "clean":
        words = " ".join([worst.subject.name, *worst.subject.overrides])
        line = f"  next: surgery lint {words} --target {worst.target}"
        console.print(line, style="dim", soft_wrap=True)


def _title(report: "Report") -> Text:
    model = "" if report.model in ("", report.subject.name) else report.model
    name, target = (report.subject.name, "bold"), (report.target, "bold")
    return Text.assemble(name, " on " if model else "", (model, "bold"), " for ", target)


def _verdict(report: "Report") -> Text:
    return Text(report.verdict, _COLORS[report.verdict])


def _last_line(report: "Report") -> Text:
    level = _LEVELS_OF_A_FILE if report.subject.kind == "graph" else _LEVELS
    summary = f"Lint by {level[report.level]}: {counted_findings(report)}: "
    return Text.assemble(summary, _verdict(report), ".")


def _codes(report: "Report") -> str:
    if report.errors:
        return ", ".join(dict.fromkeys(f"error {error.code}" for error in report.errors))
    counted = [found for found in report.findings if found.severity != "note" or found.allowed]
    ordered = sorted(counted, key=lambda found: SEVERITIES.index(found.severity))
    words = [f"{f.severity} {f.code} {f.rule}" + " (allowed)" * bool(f.allowed) for f in ordered]
    return ", ".join(dict.fromkeys(words))


def _proofs(proofs: "Sequence[Proof]") -> Table:
    words, numbers = ("graph", "blocks", "phase", "scheme", "verdict"), _NUMBERS_OF_A_PROOF
    table = plain_table(*words, *numbers, numbers=numbers)
    for proof in proofs:
        verdict = Text(proof.outcome, _OUTCOMES[proof.outcome])
        table.add_row(
            proof.form,
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
