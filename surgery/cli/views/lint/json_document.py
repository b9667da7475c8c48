"""Findings as JSON for machines, with all that is known of each."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from surgery.diagnostics.diagnostic import Diagnostic
from surgery.diagnostics.distribution import own_version
from surgery.diagnostics.finding import Finding
from surgery.plan.serialization import diagnostic_document, to_json

if TYPE_CHECKING:
    from surgery.lint.report import Report

FORMAT_VERSION: Final = "1.0"


def lint_document(reports: "Sequence[Report]", *, failed: bool) -> str:
    """Return the document as text.

    Args:
        reports: one for each subject and target.
        failed: whether the command ends with 1.
    """
    document = {
        "format_version": FORMAT_VERSION,
        "surgery": own_version(),
        "failed": failed,
        "reports": [_report(report) for report in reports],
    }
    return to_json(document)


def _report(report: "Report") -> dict[str, Any]:
    return {
        "subject": report.subject.name,
        "kind": report.subject.kind,
        "overrides": list(report.subject.overrides),
        "model": report.model,
        "target": report.target,
        "level": report.level,
        "verdict": report.verdict,
        "findings": [_finding(found) for found in report.findings],
        "proofs": [asdict(proof) for proof in report.proofs],
        "errors": [_with_location(error) for error in report.errors],
    }


def _finding(found: Finding) -> dict[str, Any]:
    names = ("rule", "target", "evidence", "known_by", "module", "allowed")
    return {**_with_location(found), **{name: getattr(found, name) for name in names}}


def _with_location(diagnostic: Diagnostic) -> dict[str, Any]:
    span = diagnostic.span
    location = {"file": span.file, "line": span.line, "column": span.column} if span else None
    return {**diagnostic_document(diagnostic), "place": location}
