"""Recipes with any mistakes: what comes out is a recipe, a plan or a sentence, nothing else."""

import copy
import itertools
from functools import cache
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from surgery.compose import load_recipe, packaged_recipes
from surgery.diagnostic import SurgeryError
from surgery.plan import make_plan
from surgery.read import read_anatomy

NAMES = [*packaged_recipes()]
RECIPES = [yaml.safe_load(file.read_text()) for file in packaged_recipes().values()]
_WORDS = """copies adapters decoder vision head rest all none base lora duplicate _self_ q mlp op
blocks rank knobs train operations model defaults _target_ hydra name peft stages revision a.b"""
WORDS = _WORDS.split()
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 2**70)
    | st.floats()
    | st.sampled_from([*WORDS, "skip 1/4", "every 0", "9-1", "${knobs.rank}", "${x", "???", "on"])
    | st.text(max_size=8)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(WORDS) | SCALARS, inner, max_size=3)
    ),
    max_leaves=5,
)
_PIECES = (
    "\t|:|- |[|]|{|}|&a |*a|<<: *a|!!x |'|\"|#|---|\n|\n  |${|? |%|@|`|\x00|\u2028|\ufeff|!!set {a}"
)
FRAGMENTS = st.sampled_from([*_PIECES.split("|"), "|"])
FOLDERS = itertools.count()
fast = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def containers(node):
    """Every mapping and list inside of a tree."""
    if isinstance(node, (dict, list)):
        yield node
        for inner in node.values() if isinstance(node, dict) else node:
            yield from containers(inner)


@st.composite
def spoilt(draw):
    """A packaged recipe in which keys were dropped, renamed, added or given other values."""
    tree = copy.deepcopy(draw(st.sampled_from(RECIPES)))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.sampled_from([node for node in containers(tree) if node] or [tree]))
        key = (
            draw(st.sampled_from([*at]))
            if isinstance(at, dict)
            else draw(st.integers(0, len(at) - 1))
        )
        how = draw(st.sampled_from(["drop", "rename", "change", "add"]))
        if how == "add" and isinstance(at, dict):
            at[draw(st.sampled_from(WORDS) | SCALARS)] = draw(VALUES)
        elif how == "rename" and isinstance(at, dict):
            at[draw(st.sampled_from(WORDS) | st.text(max_size=6))] = at.pop(key)
        elif how == "drop":
            del at[key]
        else:
            at[key] = draw(VALUES)
        tree = tree or {"train": []}
    return yaml.safe_dump(tree, allow_unicode=True, sort_keys=False)


@st.composite
def scrambled(draw):
    """The text of a packaged recipe with pieces put in and cut out."""
    name = draw(st.sampled_from(NAMES))
    text = packaged_recipes()[name].read_text()
    for _ in range(draw(st.integers(1, 3))):
        at, length = draw(st.integers(0, len(text))), draw(st.integers(0, 9))
        piece = draw(FRAGMENTS | st.text(max_size=4))
        text = text[:at] + piece + text[at + length * draw(st.integers(0, 1)) :]
    return text


OVERRIDES = st.lists(
    st.one_of(
        st.text(max_size=12),
        st.builds(
            "{}{}{}{}".format,
            st.sampled_from(["", "", "+", "++", "~"]),
            st.lists(st.sampled_from(WORDS) | st.text(max_size=3), min_size=1, max_size=4).map(
                ".".join
            ),
            st.sampled_from(["=", "=", "=", "", "=="]),
            st.text("[]{},:='\" \\$()ab1-/\n", max_size=8)
            | SCALARS.map(str)
            | VALUES.map(lambda value: str(value).replace("'", "")),
        ),
    ),
    max_size=2,
)


@cache
def anatomy():
    return read_anatomy("builtin/qwen2.5-0.5b")


def outcome(recipe, overrides=()):
    """Plan a recipe; a refusal must have sentences with known codes."""
    refused = None
    try:
        make_plan(load_recipe(recipe, overrides), anatomy())
    except SurgeryError as error:
        refused = error
    if refused:
        assert refused.exit_code == 2
        for diagnostic in refused.diagnostics:
            assert diagnostic.what
            assert diagnostic.code[0] in "RP"
            str(diagnostic)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda: Path(f"{next(FOLDERS)}.yaml")


@given(text=spoilt())
@fast
def test_wrong_keys_and_values_are_refused_with_a_sentence(place, text):
    file = place()
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    outcome(file)


@given(text=scrambled())
@fast
def test_broken_yaml_is_refused_with_a_sentence(place, text):
    file = place()
    file.write_text(text, encoding="utf-8", errors="surrogatepass")
    outcome(file)


@given(data=st.binary(max_size=60))
@fast
def test_any_bytes_are_refused_with_a_sentence(place, data):
    file = place()
    file.write_bytes(data)
    outcome(file)


@given(recipe=st.sampled_from(NAMES), overrides=OVERRIDES)
@fast
def test_any_override_is_taken_or_refused_with_a_sentence(recipe, overrides):
    outcome(recipe, overrides)


@given(name=st.text(max_size=10) | st.sampled_from(["/", "~", "..", "\0", "a" * 300, "~x/y"]))
@fast
def test_any_recipe_name_is_found_or_refused_with_a_sentence(name):
    outcome(name)
