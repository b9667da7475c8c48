"""Every rule on plans against its fixture in tests/rules/plan: cases that pass, cases that fail."""

from pathlib import Path

import pytest
import yaml
from transformers import AutoConfig

from surgery.lint.base import PlanRule, PlanSubject, known_rules
from surgery.lint.rule_runner import CONTEXT, SCHEME
from surgery.npu.target import load_target
from surgery.plan.planner import plan_recipe
from surgery.recipe.loading import load_recipe

FOLDER = Path(__file__).parents[2] / "rules" / "plan"
RULES = {name: rule for name, rule in known_rules().items() if isinstance(rule, PlanRule)}
FIXTURES = {file.stem: yaml.safe_load(file.read_text()) for file in sorted(FOLDER.glob("*.yaml"))}
CASES = [
    pytest.param(name, case, kind, id=f"{name}-{kind}-{number}")
    for name, cases in FIXTURES.items()
    for kind in ("pass", "fail")
    for number, case in enumerate(cases[kind])
]
KNOWN = {
    *("recipe", "overrides", "model", "config", "target", "context", "scheme"),
    *("finds", "says", "why", "fix", "edit", "key", "module", "evidence"),
}


def subject_of(case, folder):
    overrides = [*case.get("overrides", ())]
    if "config" in case:
        fields = dict(case["config"])
        AutoConfig.for_model(fields.pop("model_type"), **fields).save_pretrained(folder)
        overrides.append(f"model={folder}")
    elif "model" in case:
        overrides.append(f"model={case['model']}")
    plan = plan_recipe(load_recipe(case["recipe"], overrides))
    return PlanSubject(plan, case.get("context", CONTEXT), case.get("scheme", SCHEME))


def target_of(case, folder):
    wanted = case.get("target", "snapdragon")
    if isinstance(wanted, str):
        return load_target(wanted)
    content = {"like": "snapdragon-8-elite", "device": "a phone", "compiler": "htp", **wanted}
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump(content))
    return load_target(str(file))


def test_every_plan_rule_has_a_fixture_with_both_kinds():
    assert set(FIXTURES) == set(RULES)
    assert all(cases["pass"] and cases["fail"] for cases in FIXTURES.values())
    assert {key for _, case, _ in (c.values for c in CASES) for key in case} <= KNOWN


@pytest.mark.parametrize(("name", "case", "kind"), CASES)
def test_case(name, case, kind, tmp_path):
    target = target_of(case, tmp_path)
    found = list(RULES[name].check(subject_of(case, tmp_path / "model"), target))
    assert [f.severity for f in found] == (case["finds"] if kind == "fail" else [])
    for finding in found[:1]:
        assert finding.rule == name
        assert finding.target == target.name
        assert finding.known_by
        assert finding.fix
        assert case.get("says", "") in finding.what
        assert case.get("why", "") in finding.why
        assert case.get("fix", "") in finding.fix
        assert case.get("edit", []) == list(finding.edit or [])
        assert case.get("key", finding.key) == finding.key
        assert case.get("module", finding.module) == finding.module
        assert case.get("evidence", finding.evidence) == finding.evidence
