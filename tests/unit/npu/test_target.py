"""Targets: what the packaged ones say and how they know it, and what is refused."""

import copy
import re

import pytest
import yaml

from surgery.diagnostics.diagnostic import SurgeryError
from surgery.lint.base import known_rules
from surgery.npu.target import _FOLDER, Fact, known_targets, load_target

CHIPS = {
    "snapdragon-8-elite": (69, 79),
    "snapdragon-8-elite-gen-5": (87, 81),
    "snapdragon-8-gen-3": (57, 75),
    "snapdragon-8-gen-2": (43, 73),
}


def raw(name):
    return yaml.safe_load((_FOLDER / f"{name}.yaml").read_text())


def paths_of_facts(content, path=()):
    """Where in a file's content the facts are."""
    if isinstance(content, dict) and "value" in content:
        yield path
    elif isinstance(content, dict):
        for key, inner in content.items():
            yield from paths_of_facts(inner, (*path, key))


def facts_of(model):
    """Every fact of a target."""
    if isinstance(model, Fact):
        yield model
    elif isinstance(model, dict):
        for inner in model.values():
            yield from facts_of(inner)
    elif hasattr(type(model), "model_fields"):
        for name in type(model).model_fields:
            yield from facts_of(getattr(model, name))


FACTS = [(name, path) for name in known_targets() for path in paths_of_facts(raw(name))]


def refused(folder, content):
    file = folder / "mine.yaml"
    text = content if isinstance(content, str) else yaml.safe_dump(content)
    file.write_text(text, encoding="utf-8")
    with pytest.raises(SurgeryError) as caught:
        load_target(str(file))
    return caught.value.diagnostics


def test_aliases_and_numbers_of_chips():
    assert {n: (load_target(n).soc.value, load_target(n).arch.value) for n in CHIPS} == CHIPS
    assert load_target("snapdragon").name == "snapdragon-8-elite"
    assert load_target("dimensity").name == "dimensity-9400"
    assert load_target("dimensity").compiler == "none"
    words = [word for name, aliases in known_targets().items() for word in (name, *aliases)]
    assert len(set(words)) == len(words)


@pytest.mark.parametrize("name", known_targets())
def test_target_is_sound(name):
    target = load_target(name)
    assert list(facts_of(target))
    assert set(target.severities) <= set(known_rules())
    assert {fact.evidence for fact in facts_of(target)} <= {"proved", "table", "doc", "report"}
    if target.compiler == "none":
        assert all(fact.evidence != "proved" for fact in facts_of(target))


@pytest.mark.parametrize("name", CHIPS)
def test_what_is_proved_was_run_for_this_very_chip(name):
    proved = [fact for fact in facts_of(load_target(name)) if fact.evidence == "proved"]
    assert len(proved) > 10
    for fact in proved:
        assert str(CHIPS[name][0]) in re.findall(r"\d+", fact.source.partition("soc")[2])


@pytest.mark.parametrize("name", CHIPS)
def test_own_facts_are_not_those_of_another_chip(name):
    target = load_target(name)
    others = {str(soc) for soc, _ in CHIPS.values()} - {str(CHIPS[name][0])}
    for fact in (target.soc, target.arch, target.limits.vtcm_bytes):
        assert not any(re.search(rf"= {number}\b", fact.source) for number in others)


@pytest.mark.parametrize("key", ["source", "date", "evidence", "value"])
def test_fact_without_source_date_or_evidence_is_refused(tmp_path, key):
    for name, path in FACTS:
        content = copy.deepcopy(raw(name))
        fact = content
        for step in path:
            fact = fact[step]
        if key == "value":
            fact["value"] = {"not": "a value"}
        else:
            del fact[key]
        said = refused(tmp_path, content)
        assert {d.code for d in said} == {"R122"}, (name, path)
        assert any(".".join(path) in d.what for d in said), (name, path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"limits": {"rank": 5}}, "limits.rank"),
        ({"compiler": "tvm"}, "compiler"),
        ({"colour": "red"}, "colour"),
        ({"limits": {"rank": {"value": 5, "evidence": "hearsay"}}}, "limits.rank.evidence"),
    ],
)
def test_other_content_is_refused(tmp_path, change, says):
    said = refused(tmp_path, {**raw("snapdragon-8-elite"), **change})
    assert any(says in diagnostic.what for diagnostic in said)


@pytest.mark.parametrize("text", ["", "[]", "a: [", "like: {}", "\x00", "like: snapdragon-8-elit"])
def test_what_is_no_target_is_refused(tmp_path, text):
    assert {d.code for d in refused(tmp_path, text)} <= {"R121", "R122"}


def test_missing_field_is_named(tmp_path):
    content = raw("snapdragon-8-elite")
    del content["types"]
    assert "`types`: field required" in refused(tmp_path, content)[0].what


def test_unknown_target_names_the_nearest():
    for name in ("snapdragn", "", "../mine", "no/such.yaml", "snapdragon-8"):
        with pytest.raises(SurgeryError) as caught:
            load_target(name)
        assert caught.value.diagnostics[0].code == "R121"
        assert caught.value.exit_code == 2
    with pytest.raises(SurgeryError) as caught:
        load_target("snapdragn")
    assert "`--target snapdragon`" in caught.value.diagnostics[0].fix


def test_own_file_may_be_like_another(tmp_path):
    file = tmp_path / "mine.yaml"
    fact = {"value": 100, "evidence": "report", "source": "our own phone", "date": "2026-11-22"}
    own = {"device": "ours", "limits": {"memory_bytes": fact, "session_bytes": None}}
    file.write_text(yaml.safe_dump({"like": "snapdragon-8-elite", **own}))
    target = load_target(str(file))
    assert target.name == "mine"
    assert target.limits.memory_bytes.value == 100
    assert target.limits.session_bytes is None
    assert target.limits.rank == load_target("snapdragon").limits.rank
    assert target.soc is None  # another chip's number is nobody else's
    assert target.aliases == ()


def test_tables_alone_are_no_error_but_for_routing():
    dimensity, snapdragon = load_target("dimensity"), load_target("snapdragon")
    assert dimensity.severity("memory", "error") == "warning"
    assert dimensity.severity("memory", "note") == "note"
    assert dimensity.severity("moe-routing", "error") == "error"
    assert snapdragon.severity("memory", "error") == "error"
    assert dimensity.fact_on("NonZero").evidence == "table"
    assert snapdragon.fact_on("Loop").evidence == "proved"
    assert snapdragon.fact_on("MatMul") is None
