"""Recipes and overrides with any mistakes: what comes out is a plan or a sentence."""

import contextlib
import itertools
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fuzz.judge import ends_well, inputs
from fuzz.spoil import LONG, VALUES, spoilt, spoilt_bytes
from surgery.recipe.recipe_file import packaged_recipes
from surgery.recipe.schema import Recipe
from surgery.recipe.training_schema import Stage

NAMES = [*packaged_recipes()]
TEXTS = [file.read_text(encoding="utf-8") for file in packaged_recipes().values()]
STAGED = {"stages": {"a": {"data": "x.jsonl", "steps": 2, "rates": {"copies": 1e-5}}}}
RECIPES = [*map(yaml.safe_load, TEXTS), {**yaml.safe_load(TEXTS[0]), **STAGED}]
_MEANT = """copies adapters decoder vision head rest all none base lora duplicate _self_ q mlp op
blocks rank knobs train operations model defaults _target_ hydra name peft stages ranges expert
learner insert drop modules alpha a.b genieblue_skip builtin/tiny-qwen2 builtin/tiny-vit"""
WORDS = [*_MEANT.split(), *Recipe.model_fields, *Stage.model_fields, "skip 1/4", "every 0", "9-1"]
_CHUNKS = """\t|:|- |[|]|{|}|&a |*a|<<: *a|!!x |'|"|#|---|\n|\n  |${|? |%|@|`|\x00|\u2028|\ufeff
!!set {a}|!!python/object:os.system {}|!!binary |!!timestamp 1|? [a]: b|<<: [*a, *a]|1: 2|on: off
op: lora|[[[[[[[[|${a:${b}}|${knobs.rank}|&a [*a]|.inf|0x1f|1_000|1:30|~|=|\x85|\ud800|\r|\\u0000"""
CHUNKS = [*_CHUNKS.replace("\nop", "|op").split("|"), "|", "\n!!set {a}", LONG]
CIRCLE = "${knobs.a}"
BOMB = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
)
WHOLE = [
    *(f"train: {'[' * depth}{']' * depth}" for depth in (100, 400, 3000)),
    *("".join(f"{' ' * n}a:\n" for n in range(depth)) for depth in (90, 900)),
    f"knobs: {{a: {CIRCLE}}}",
    "knobs: {a: '${knobs.b}', b: '${knobs.a}'}",
    f"knobs: {{a: '{'${' * 200}x{'}' * 200}'}}",
    f"defaults: [{LONG}, _self_]",
    f"defaults: [x/{LONG}/y, _self_]",
    f"model: {LONG}",
    "defaults: [base, {a: b}, _self_]",
    "defaults: [override x: y, optional z: base, base@a.b, _self_]",
    "defaults: [null, 3, [a], _self_]",
    "knobs: &a {x: 1, <<: *a}",
    "train: &a [*a]",
    BOMB,
    f"train: {BOMB.replace(chr(10), ', ').join('{}')}",
    "seed: " + "9" * 5000,
    "description: !!binary ////",
    "knobs: {a: 1, a: 2}",
]
FOLDERS = itertools.count()


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda: Path(f"{next(FOLDERS)}.yaml")


@st.composite
def scrambled(draw):
    """The text of a packaged recipe with pieces put in and cut out."""
    text = draw(st.sampled_from(TEXTS))
    for _ in range(draw(st.integers(1, 3))):
        at, length = draw(st.integers(0, len(text))), draw(st.integers(0, 9))
        chunk = draw(st.sampled_from(CHUNKS) | st.text(max_size=4))
        text = text[:at] + chunk + text[at + length * draw(st.integers(0, 1)) :]
    return draw(spoilt_bytes(text))


RECIPE_BYTES = st.one_of(
    spoilt(RECIPES, WORDS)
    .map(lambda tree: yaml.safe_dump(tree, allow_unicode=True, sort_keys=False))
    .flatmap(spoilt_bytes),
    scrambled(),
    st.sampled_from(WHOLE).flatmap(spoilt_bytes),
)


@pytest.mark.parametrize("text", WHOLE, ids=range(len(WHOLE)))
def test_a_recipe_that_is_wrong_as_a_whole_is_refused_with_a_sentence(workspace, text):
    file = workspace()
    file.write_text(text, encoding="utf-8")
    assert ends_well("plan", str(file)).code in (2, 3)


@given(data=RECIPE_BYTES, command=st.sampled_from(["plan", "plan", "plan", "lint", "sweep"]))
@inputs(0.25)
def test_a_spoilt_recipe_is_planned_or_refused_with_a_sentence(workspace, data, command):
    file = workspace()
    file.write_bytes(data)
    ends_well(command, str(file), *(["--out", f"{file}.out"] if command == "sweep" else []))


def _words(separator):
    keys = st.lists(st.sampled_from(WORDS) | st.text(max_size=3), min_size=1, max_size=4)
    values = st.one_of(
        st.text("[]{},:='\" \\$()ab1-/\n\0", max_size=8),
        VALUES.map(str),
        VALUES.map(lambda value: str(value).replace("'", "")),
        st.sampled_from(
            ["range", "choice", "interval", "glob", "sort", "shuffle", "tag", "int"]
        ).map(lambda function: f"{function}(1,2,0)"),
        st.builds(lambda sign, n: sign * n, st.sampled_from("[{('\"$"), st.integers(1, 700)),
        st.integers(1, 700).map(lambda n: "[" * n + "]" * n),
        st.integers(1, 700).map(lambda n: "${a:" * n + "}" * n),
        st.sampled_from(["4", "8", "x.jsonl", "pre 1/4", "builtin/tiny-qwen2", LONG, "a\udcffb"]),
    )
    signs = st.sampled_from(["", "", "", "", "+", "++", "~"])
    return st.builds("{}{}{}{}".format, signs, keys.map(".".join), separator, values)


OVERRIDES = st.lists(
    _words(st.sampled_from(["=", "=", "=", "=", "", "=="]))
    | st.text(max_size=12).filter(lambda word: not word.startswith("-")),
    min_size=1,
    max_size=3,
)


@given(
    command=st.sampled_from(["plan", "plan", "plan --train", "lint", "sweep"]),
    recipe=st.sampled_from(NAMES),
    overrides=OVERRIDES,
)
@inputs(0.25)
def test_any_override_is_taken_or_refused_with_a_sentence(workspace, command, recipe, overrides):
    out = ["--out", f"{workspace()}.out"] if command == "sweep" else []
    overrides = [word for word in overrides if word and not word.startswith("-")]
    ends_well(*command.split(), recipe, *out, *overrides)


NAMED = """plan {}|lint {}|lint x={}|apply {}|apply lora --out {}|train {}|diff lora {}|verify {}
apply lora description={} --out a|recipes show {}|recipes copy lora {}|inspect {}|evaluate {}
explain {}|export {} --out x|run {} --path text --prompt x|sweep {}|sweep recipe={}|assemble {}
sweep lora --out {}|sweep lora description={},b --out b|plan lora --deploy --target {}
targets show {}|plan lora --out {}|plan lora model={}|plan lora vision={}|plan sighted vision={}
plan lora revision={}|sweep lora --launcher {}|sweep lora hydra.{}=1
plan lora description={} --format json"""
NAMED = NAMED.replace("\n", "|").split("|")
ODD_NAMES = ["/", "~", "..", "\0", LONG, "n" * 252, "~x/y", f"a/{LONG}", "../" * 2000, "a\udcffb"]


@given(
    command=st.sampled_from(NAMED),
    name=st.sampled_from(ODD_NAMES) | st.text(min_size=1, max_size=10),
)
@inputs(0.1)
def test_any_name_is_found_or_refused_with_a_sentence(workspace, command, name):
    folder = workspace().with_suffix("")
    folder.mkdir()
    with contextlib.chdir(folder):
        ends_well(*(word.format(name) if "{}" in word else word for word in command.split()))


@pytest.mark.parametrize("name", [LONG, "a\udcffb"])
@pytest.mark.parametrize("command", NAMED)
def test_a_name_that_no_file_has_is_no_bug(workspace, monkeypatch, command, name):
    monkeypatch.chdir(workspace().parent)
    ends_well(*(word.format(name) for word in command.split()))
