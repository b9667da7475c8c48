"""Findings as SARIF 2.1.0, the format in which code hosts and editors take them.

Source: OASIS, "Static Analysis Results Interchange Format (SARIF) Version 2.1.0" (2020); the
section numbers below are its. GitHub shows only results that name a file.
"""

import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from surgery.diagnostics.diagnostic import Diagnostic, Span
from surgery.diagnostics.distribution import DISTRIBUTION, own_version
from surgery.diagnostics.finding import Finding
from surgery.lint.base import Rule, known_rules
from surgery.lint.code_pages import page_of
from surgery.plan.serialization import to_json

if TYPE_CHECKING:
    from surgery.lint.report import Report

_SCHEMA: Final = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
_FINGERPRINT: Final = "surgeryLint/v1"


def sarif(reports: "Sequence[Report]") -> str:
    """Return the log as text: one run, every rule with its page, a result for each finding."""
    rules = {rule.code: rule for rule in known_rules().values()}
    order = {code: position for position, code in enumerate(rules)}
    driver = {
        "name": "surgery",
        "semanticVersion": own_version(),
        "rules": [_rule(rule) for rule in rules.values()],
    }
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "invocations": [_invocation(reports)],
        "results": [_result(report, f, order) for report in reports for f in report.findings],
    }
    return to_json({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]})


def _rule(rule: Rule) -> dict[str, Any]:
    """A reportingDescriptor (3.49); its help is the page that `surgery explain` prints."""
    page = page_of(rule.code)
    return {
        "id": rule.code,
        "name": "".join(word.capitalize() for word in rule.name.split("-")),
        "shortDescription": {"text": f"{rule.name} ({rule.evidence})"},
        "fullDescription": {"text": _summary(rule)},
        "help": {"text": page, "markdown": page},
        **_help_address(rule.code),
        "defaultConfiguration": {"level": rule.severity},
        "properties": {"tags": ["npu", rule.evidence], "known_by": rule.known_by},
    }


def _help_address(code: str) -> dict[str, str]:
    """A rule's page on the web, where this installation says in its metadata where that is."""
    addresses = metadata(DISTRIBUTION).get_all("Project-URL") or []
    pages = [a.partition(", ")[2] for a in addresses if a.startswith("Documentation, ")]
    return {"helpUri": f"{pages[0].rstrip('/')}/reference/rules/#{code.lower()}"} if pages else {}


def _summary(rule: Rule) -> str:
    paragraph = (type(rule).__doc__ or rule.name).strip().split("\n\n")[0]
    return " ".join(paragraph.split())


def _result(report: "Report", found: Finding, order: Mapping[str, int]) -> dict[str, Any]:
    """A result (3.27)."""
    result: dict[str, Any] = {
        "ruleId": found.code,
        "ruleIndex": order[found.code],
        "level": found.severity,
        "message": {"text": _message(found)},
        "locations": [_location(report, found)],
        "partialFingerprints": {_FINGERPRINT: _fingerprint(report, found)},
        "properties": {
            "subject": report.subject.name,
            "target": report.target,
            "evidence": found.evidence,
            "known_by": found.known_by,
        },
    }
    if found.allowed:
        result["suppressions"] = [{"kind": "inSource", "justification": found.allowed}]
    return result


def _message(diagnostic: Diagnostic) -> str:
    parts = [
        diagnostic.what,
        diagnostic.why and f"Why: {diagnostic.why}",
        diagnostic.fix and f"Fix: {diagnostic.fix}",
    ]
    return "\n".join(f"{part}." for part in parts if part)


def _fingerprint(report: "Report", found: Finding) -> str:
    """What stays the same when lines move, so that a host knows a finding again."""
    marks = (report.subject.name, report.target, found.code, found.key, found.module)
    return hashlib.sha256("\0".join(marks).encode()).hexdigest()[:32]


def _location(report: "Report", diagnostic: Diagnostic) -> dict[str, Any]:
    """A location (3.28): file and region, and the recipe's key and the module as logical ones."""
    location: dict[str, Any] = {}
    file, span = report.location_of(diagnostic)
    if file:
        region = {"region": _region(span)} if span else {}
        location["physicalLocation"] = {"artifactLocation": {"uri": _uri(file)}, **region}
    named = [(diagnostic.key, "member"), (getattr(diagnostic, "module", ""), "module")]
    logical = [{"fullyQualifiedName": name, "kind": kind} for name, kind in named if name]
    if logical:
        location["logicalLocations"] = logical
    return location


def _region(span: Span) -> dict[str, Any]:
    """A region (3.30): 1-based, the end column exclusive."""
    return {
        "startLine": span.line,
        "startColumn": span.column,
        "endColumn": span.column + max(1, span.width),
        "snippet": {"text": span.text},
    }


def _uri(file: str) -> str:
    """Relative to where lint was run, which is the repository in CI; else absolute."""
    path = Path(file)
    return path.as_uri() if path.is_absolute() else quote(path.as_posix())


def _invocation(reports: "Sequence[Report]") -> dict[str, Any]:
    """An invocation (3.20); what could not be linted is a notification."""
    notes = [
        {
            "descriptor": {"id": error.code},
            "level": "error",
            "message": {"text": f"{report.subject.name}: {_message(error)}"},
            "locations": [_location(report, error)],
        }
        for report in reports
        for error in report.errors
    ]
    invocation: dict[str, Any] = {"executionSuccessful": not notes}
    return {**invocation, "toolExecutionNotifications": notes} if notes else invocation
