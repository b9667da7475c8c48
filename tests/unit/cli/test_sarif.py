"""SARIF is valid against OASIS' own schema, and GitHub's annotations are escaped as it wants."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from sarif_kit.validate import validation_errors

from surgery.cli.views.lint.github import annotations
from surgery.cli.views.lint.sarif import sarif
from surgery.diagnostics.diagnostic import Diagnostic, Span
from surgery.diagnostics.finding import Finding
from surgery.lint.base import known_rules
from surgery.lint.report import Report
from surgery.lint.subject import Subject

FILE = Path("my recipes/ö.yaml")
LINE = "  experts: {op: expert, blocks: all, form: gather}"
SPAN = Span(str(FILE), 4, 44, LINE, 6)
RULE = known_rules()["not-traceable"]


def finding(**changed: object) -> Finding:
    made = Finding(
        code=RULE.code,
        what="`block+expert` has no static graph",
        why="GuardOnDataDependentSymNode: Eq(u0, 0)",
        fix="use `form: blend`",
        span=SPAN,
        key="operations.experts.form",
        rule=RULE.name,
        target="snapdragon-8-elite",
        evidence="proved",
        known_by="torch.export",
        module="model.layers.3",
    )
    return replace(made, **changed)  # type: ignore[arg-type]


def report(*findings: Finding, file: Path | None = FILE, **more: object) -> Report:
    subject = Subject("mine", "recipe", file)
    return Report(subject, "snapdragon-8-elite", findings=findings, **more)  # type: ignore[arg-type]


def log_of(*reports: Report) -> dict:
    log = json.loads(sarif(reports))
    assert validation_errors(log) == []
    return log["runs"][0]


def test_nothing_found_is_a_valid_log_with_every_rule() -> None:
    run = log_of(report())
    assert run["results"] == []
    assert run["invocations"] == [{"executionSuccessful": True}]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == [rule.code for rule in known_rules().values()]
    assert all(rule["help"]["text"].strip() for rule in rules)
    assert len({rule["name"] for rule in rules}) == len(rules)


def test_a_finding_has_its_rule_its_level_and_its_place() -> None:
    run = log_of(report(finding(), finding(severity="warning"), finding(severity="note")))
    assert [result["level"] for result in run["results"]] == ["error", "warning", "note"]
    result = run["results"][0]
    assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"] == "L200"
    place = result["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {"uri": "my%20recipes/%C3%B6.yaml"}
    region = place["region"]
    assert (region["startLine"], region["startColumn"], region["endColumn"]) == (4, 44, 50)
    assert LINE[region["startColumn"] - 1 : region["endColumn"] - 1] == "gather"
    names = [name["fullyQualifiedName"] for name in result["locations"][0]["logicalLocations"]]
    assert names == ["operations.experts.form", "model.layers.3"]
    assert "GuardOnDataDependentSymNode" in result["message"]["text"]
    assert result["properties"]["known_by"] == "torch.export"


@pytest.mark.parametrize("span", [None, Span("<override 1>", 1, 6, "form=gather", 6)])
def test_a_finding_without_a_place_in_a_file_is_at_its_subject(span: Span | None) -> None:
    place = log_of(report(finding(span=span)))["results"][0]["locations"][0]["physicalLocation"]
    assert place == {"artifactLocation": {"uri": "my%20recipes/%C3%B6.yaml"}}


def test_a_file_elsewhere_has_an_absolute_address() -> None:
    far = replace(SPAN, file="/opt/recipes/a b.yaml")
    place = log_of(report(finding(span=far), file=None))["results"][0]["locations"][0][
        "physicalLocation"
    ]
    assert place["artifactLocation"]["uri"] == "file:///opt/recipes/a%20b.yaml"


def test_what_a_packaged_parent_says_is_shown_at_the_users_recipe() -> None:
    far = replace(SPAN, file="/opt/recipes/a b.yaml")
    place = log_of(report(finding(span=far)))["results"][0]["locations"][0]["physicalLocation"]
    assert place == {"artifactLocation": {"uri": "my%20recipes/%C3%B6.yaml"}}
    text = annotations([report(finding(span=far))])
    assert text.startswith("::error file=my recipes/ö.yaml,title=L200")


def test_what_is_allowed_is_suppressed_with_its_reason() -> None:
    run = log_of(report(finding(severity="note", allowed="the demo runs on a laptop")))
    justified = {"kind": "inSource", "justification": "the demo runs on a laptop"}
    assert run["results"][0]["suppressions"] == [justified]


def test_what_could_not_be_linted_is_a_notification() -> None:
    error = Diagnostic("M101", "there is no model `x`", fix="name another")
    run = log_of(report(file=None, errors=(error,)))
    assert run["invocations"][0]["executionSuccessful"] is False
    note = run["invocations"][0]["toolExecutionNotifications"][0]
    assert note["descriptor"] == {"id": "M101"}
    assert "there is no model" in note["message"]["text"]


def test_a_finding_is_known_again_when_its_line_moves() -> None:
    moved = finding(span=replace(SPAN, line=9))
    other = finding(module="model.layers.7")
    prints = [r["partialFingerprints"] for r in log_of(report(finding(), moved, other))["results"]]
    assert prints[0] == prints[1] != prints[2]


def test_the_schema_would_notice() -> None:
    log = json.loads(sarif([report(finding())]))
    log["runs"][0]["results"][0]["level"] = "fatal"
    assert validation_errors(log)


def test_an_annotation_is_one_line_with_its_place() -> None:
    text = annotations([report(finding(what="50% of\nall, done: yes"))])
    assert text.count("\n") == 1
    assert text.startswith(
        "::error file=my recipes/ö.yaml,line=4,col=44,endColumn=50,title=L200 not-traceable::"
        "mine for snapdragon-8-elite: 50%25 of%0Aall, done: yes%0AGuardOnDataDependent"
    )


def test_annotations_escape_commas_and_colons_in_properties_alone() -> None:
    odd = replace(SPAN, file="a,b:c%d.yaml")
    text = annotations([report(finding(span=odd, severity="note", why="a,b:c"))])
    assert text.startswith("::notice file=a%2Cb%3Ac%25d.yaml,line=4,")
    assert "%0Aa,b:c%0A" in text


def test_an_annotation_names_the_subject_where_the_place_is_an_override() -> None:
    text = annotations([report(finding(span=Span("<override 1>", 1, 6, "form=gather", 6)))])
    assert text.startswith("::error file=my recipes/ö.yaml,title=L200")
