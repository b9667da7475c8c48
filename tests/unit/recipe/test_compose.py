"""From YAML and `key=value` to a recipe: what is merged, and how each mistake is told."""

import os
from pathlib import Path

import pytest

from surgery.diagnostics.diagnostic import SurgeryError
from surgery.recipe.loading import load_recipe
from surgery.recipe.recipe_file import find_recipe, packaged_recipes, recipes_folder

MINE = """\
defaults: [genieblue_skip, _self_]
knobs: {rank: 4}
train: [copies]
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a recipe into an empty folder, which is then the working folder."""
    monkeypatch.chdir(tmp_path)

    def written(content, name="mine.yaml"):
        if isinstance(content, bytes):
            Path(name).write_bytes(content)
        else:
            Path(name).write_text(content, encoding="utf-8", newline="")
        return name

    return written


def located_codes(recipe, *overrides):
    """Code and place of everything that is said of a recipe."""
    with pytest.raises(SurgeryError) as caught:
        load_recipe(recipe, overrides)
    return [(d.code, str(d.span) if d.span else "") for d in caught.value.diagnostics]


def words(recipe, *overrides):
    with pytest.raises(SurgeryError) as caught:
        load_recipe(recipe, overrides)
    return str(caught.value)


def test_own_file_starts_from_a_packaged_recipe(write):
    recipe = load_recipe(write(MINE))
    assert recipe.name == "mine"
    assert recipe.model == "builtin/tiny-qwen2"
    assert recipe.knobs == {"placement": "skip", "rank": 4}
    assert recipe.operations["copies"].blocks == "skip 1/4"
    assert recipe.operations["adapters"].rank == 4
    assert recipe.train == ("copies",)


def test_own_file_wins_over_packaged_one_of_the_same_name(write):
    write("defaults: [base, _self_]\ntrain: [decoder]\n", "lora.yaml")
    assert load_recipe("lora").train == ("decoder",)
    assert load_recipe(write("defaults: [lora, _self_]\nseed: 3\n")).train == ("decoder",)


def test_parent_after_self_wins(write):
    before = load_recipe(write("defaults: [lora, _self_]\nknobs: {rank: 4}\n"))
    after = load_recipe(write("defaults: [_self_, lora]\nknobs: {rank: 4}\n"))
    assert (before.knobs["rank"], after.knobs["rank"]) == (4, 8)


@pytest.mark.parametrize("name", ["lora", "lora.yaml", "recipes/lora", "recipes/lora.yaml"])
def test_packaged_name_is_found_from_any_folder(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert find_recipe(name) == recipes_folder() / "lora.yaml"
    assert load_recipe(name).name == "lora"


@pytest.mark.parametrize("name", [*packaged_recipes(), "base"])
def test_packaged_recipes_load(name):
    assert load_recipe(name).model == "builtin/tiny-qwen2"


@pytest.mark.parametrize("name", ["dot.name-v1.yaml", "ünï.yaml", "a b.yaml"])
def test_odd_file_names_load(write, name):
    assert load_recipe(write(MINE, name)).name == name.removesuffix(".yaml")


def test_folder_with_odd_name_loads(write):
    Path("a=b, {c}").mkdir()
    assert load_recipe(write(MINE, "a=b, {c}/mine.yaml")).name == "mine"


def test_overrides_reach_knobs_fields_and_dotted_names():
    recipe = load_recipe(
        "genieblue_skip",
        [
            "placement=post",
            "rank=16",
            "seed=3",
            "operations.adapters.modules=[q,v]",
            "revision=main",
        ],
    )
    assert recipe.operations["copies"].blocks == "post 1/4"
    assert recipe.operations["adapters"].rank == 16
    assert recipe.operations["adapters"].modules == ("q", "v")
    assert (recipe.seed, recipe.revision) == (3, "main")


@pytest.mark.parametrize(
    ("typed", "blocks"),
    [
        ("pre 1/3", "pre 1/3"),
        ("[0,-1]", (0, -1)),
        ("0-3", "0-3"),
        ("every 4 from 1", "every 4 from 1"),
        ("' rest '", "rest"),
    ],
)
def test_selector_needs_no_quotes_in_an_override(typed, blocks):
    recipe = load_recipe(
        "genieblue_skip", [f"operations.copies.blocks={typed}", "operations.adapters.blocks=none"]
    )
    assert recipe.operations["copies"].blocks == blocks


@pytest.mark.parametrize(
    ("typed", "model"),
    [
        ("/a b/c=d", "/a b/c=d"),
        ("Qwen/Qwen2.5-3B", "Qwen/Qwen2.5-3B"),
        ("'a,b'", "a,b"),
        ('"a b"', "a b"),
        ("C:\\a=b", "C:\\a=b"),
        ("/ünï/字", "/ünï/字"),
    ],
)
def test_model_path_is_taken_as_typed(typed, model):
    assert load_recipe("lora", [f"model={typed}"]).model == model


@pytest.mark.parametrize(
    "name", ["a,b", "${knobs.rank}", "c\\${x}", "[a]", "x=(1)", "it's", 'q"u', "a:b", "glob(*)"]
)
def test_an_existing_path_is_taken_literally(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    quoted = [] if "'" in name else [f"model='./{name}'"]
    for argument in (f"model=./{name}", f"model={name}", *quoted):
        assert load_recipe("lora", [argument]).model in (name, f"./{name}")


def test_overrides_may_be_a_mapping_of_values():
    values = {"rank": 4, "model": "./a,b c", "train": ["adapters"], "steps": 3, "data": {"a": "x"}}
    typed = ["rank=4", "model='./a,b c'", "train=[adapters]", "steps=3", "data={a: x}"]
    assert load_recipe("lora", values).resolved() == load_recipe("lora", typed).resolved()
    flags = {"packing": True, "seed": 3, "revision": None, "trainer": {"optim": "sgd"}}
    stage = load_recipe("lora", flags).stages["train"]
    assert (stage.packing, stage.trainer) == (True, {"optim": "sgd"})
    assert load_recipe("lora", "rank=4").knobs == {"rank": 4}
    with pytest.raises(SurgeryError, match="did you mean `rank`"):
        load_recipe("lora", {"rnak": 4})


def test_a_key_of_every_stage_may_stand_alone_wherever_overrides_do():
    assert load_recipe("genieblue_skip", ["batch=5"]).stages["train"].batch == 5
    typed = ["stages.extra.steps=3", "batch=5", "rates.copies=1e-5"]
    extra = load_recipe("wings", typed).stages["extra"]
    assert (extra.batch, extra.rates) == (5, {"copies": 1e-5})
    assert load_recipe("wings", ["batch=5", "~batch"]).stages["align"].batch == 8
    assert "did you mean `steps`?" in words("lora", "stpes=4")


def test_key_is_taken_out_and_put_in():
    recipe = load_recipe(
        "genieblue_skip", ["~operations.copies", "operations.more={op: lora, blocks: none}"]
    )
    assert list(recipe.operations) == ["adapters", "more"]


def test_last_override_wins():
    assert load_recipe("lora", ["rank=2", "knobs.rank=3"]).knobs["rank"] == 3


def test_all_errors_are_reported_together_with_their_locations(write):
    write(
        "defaults: [base, _self_]\n"
        "modell: a\n"
        "seed: -1\n"
        "operations:\n"
        "  copies: {op: duplicate, blocks: skip 5/4, rnk: 3}\n"
        "  adapters: {op: lorra, blocks: rest}\n"
        "  more: {op: lora, rank: '8', blocks: all}\n"
        "train: decoder\n"
    )
    assert sorted(located_codes("mine", "foo=3", "rank")) == sorted(
        [
            ("R109", "<override 1>:1:1"),
            ("R110", "<override 2>:1:1"),
            ("R101", "mine.yaml:2:1"),
            ("R103", "mine.yaml:3:7"),
            ("R106", "mine.yaml:5:35"),
            ("R101", "mine.yaml:5:45"),
            ("R105", "mine.yaml:6:18"),
            ("R102", "mine.yaml:7:26"),
            ("R102", "mine.yaml:8:8"),
        ]
    )


def test_error_in_a_parent_names_the_parents_file(write):
    write("defaults: [base, _self_]\nseed: x\n", "parent.yaml")
    write("defaults: [parent, _self_]\n")
    assert located_codes("mine") == [("R102", "parent.yaml:2:7")]
    assert located_codes("mine", "seed=y") == [("R102", "<override 1>:1:6")]


def test_wrong_knob_is_shown_where_it_was_overridden():
    assert located_codes("lora", "rank=a") == [("R102", "<override 1>:1:6")]


def test_wrong_knob_is_shown_in_the_file_that_set_it_last(write):
    write("defaults: [lora, _self_]\nknobs: {rank: a}\n")
    assert located_codes("mine") == [("R102", "mine.yaml:2:15")]
    write("defaults: [lora, _self_]\noperations: {adapters: {blocks: '${knobs.rank}'}}\n")
    assert located_codes("mine") == [("R106", "mine.yaml:2:33")]


FILES = [
    ("", [("R111", "")]),
    ("# nothing\n", [("R111", "")]),
    ("- a\n", [("R111", "mine.yaml:1:1")]),
    ("hello\n", [("R111", "mine.yaml:1:1")]),
    ("a: b: c\n", [("R111", "mine.yaml:1:5")]),
    ("knobs:\n\trank: 8\n", [("R111", "mine.yaml:2:1")]),
    ("model: a\nmodel: b\n", [("R111", "mine.yaml:2:1")]),
    ("model: a\n---\nmodel: b\n", [("R111", "mine.yaml:2:1")]),
    ("model: !!python/name:os.system x\n", [("R111", "mine.yaml:1:8")]),
    ("model: a\n1: 2\nno: 3\n", [("R111", "mine.yaml:2:1"), ("R111", "mine.yaml:3:1")]),
    ("operations: &x\n  a: *x\n", [("R111", "")]),
    ("train: [!!timestamp x]\n", [("R111", "mine.yaml:1:9")]),
    ("knobs: {a: !!bool maybe}\n", [("R111", "mine.yaml:1:12")]),
    ("seed: !!int many\n", [("R111", "mine.yaml:1:7")]),
    ("seed: !!float x\n", [("R111", "mine.yaml:1:7")]),
    ("description: 2026-13-45\n", [("R111", "mine.yaml:1:14")]),
    ("description: !!binary /\n", [("R111", "mine.yaml:1:14")]),
    ("train: !!omap [a]\n", [("R111", "mine.yaml:1:16")]),
    ("knobs: " + "[" * 2000 + "]" * 2000, [("R111", "")]),
    ("model: a\x07\n", [("R111", "")]),
    (b"model: \xff\n", [("R111", "")]),
    (bytes(30), [("R111", "")]),
    ("operations:\n", [("R104", "mine.yaml:1:1"), ("R102", "mine.yaml:1:12")]),
    ("model: a\nknobs:\n", [("R102", "mine.yaml:2:7")]),
    ("model: a\nname: b\n", [("R101", "mine.yaml:2:1")]),
    ("model: a\nknobs: {model: b}\n", [("R107", "mine.yaml:2:16")]),
    ("model: a\nknobs: {a.b: 1}\n", [("R107", "mine.yaml:2:8")]),
    ("model: a\noperations: {head: {op: lora, blocks: all}}\n", [("R107", "mine.yaml:2:20")]),
    ("model: a\nknobs: {a: {b: 1}}\n", [("R102", "mine.yaml:2:12")]),
    ("model: a\nknobs: {a: '${knobs.b}'}\n", [("R114", "mine.yaml:2:12")]),
    ("model: a\nknobs: {a: '${knobs.'}\n", [("R114", "mine.yaml:2:12")]),
    ("model: a\nknobs: {a: '${hydra:runtime.cwd}'}\n", [("R114", "mine.yaml:2:12")]),
    ("model: ???\n", [("R104", "mine.yaml:1:8")]),
    ("model: a\ndefaults: _self_\n", [("R113", "mine.yaml:2:11")]),
    ("defaults:\nmodel: a\n", [("R113", "mine.yaml:1:10")]),
    ("defaults: [base]\n", [("R113", "mine.yaml:1:11")]),
    ("defaults: [base, [a], _self_]\n", [("R113", "mine.yaml:1:18")]),
    (
        "defaults: [base, 3, null, _self_]\n",
        [("R113", "mine.yaml:1:18"), ("R113", "mine.yaml:1:21")],
    ),
    ("defaults: [_self_, _self_]\n", [("R113", "mine.yaml:1:11")]),
    ("defaults: [mine, _self_]\n", [("R110", "mine.yaml:1:11")]),
    ("defaults: [genieblue_skop, _self_]\n", [("R113", "mine.yaml:1:11")]),
    (
        "model: a\noperations: {a: {op: lora, blocks: rest}, b: {op: duplicate, blocks: rest}}\n",
        [("R116", "mine.yaml:2:70")],
    ),
    (
        "model: a\noperations: {a: {_target_: os.system}}\n",
        [("R108", "mine.yaml:2:18"), ("R105", "mine.yaml:2:17")],
    ),
]


@pytest.mark.parametrize(("content", "expected"), FILES, ids=[repr(f[0][:30]) for f in FILES])
def test_mistake_in_a_file_is_reported_with_its_location(write, content, expected):
    write(content)
    assert located_codes("mine") == expected


OVERRIDES = [
    ("rank", "R110", 1),
    ("", "R110", 1),
    ("=3", "R109", 1),
    ("+foo=3", "R109", 2),
    ("rank =3", "R109", 1),
    ("operations..x=3", "R109", 1),
    ("operations.copies.rnk=3", "R101", 1),
    ("operations.new.op=lora", "R104", 1),
    ("operations.copies.op=lorra", "R105", 22),
    ("operations.copies.blocks=skip 5/4", "R106", 26),
    ("operations.copies=null", "R102", 19),
    ("operations.copies._target_=os.system", "R108", 1),
    ("operations.copies={_target_: os.system}", "R108", 1),
    ("~operations.nope", "R109", 2),
    ("~rank", "R114", 2),
    ("~model", "R104", 2),
    ("placement=pre,post", "R115", 11),
    ("rank=range(1,4)", "R115", 6),
    ("stpes=4", "R109", 1),
    ("model=a\udcffb", "R137", 7),
    ("knobs.rank=\udcff", "R137", 12),
    ("steps=4,5", "R115", 7),
    ("steps=many", "R102", 7),
    ("rates.copies=0", "R103", 14),
    ("rank=range(1,2,0)", "R110", 6),
    ("rank=range(0.5,2,0)", "R110", 6),
    ("rank=range(1,1)", "R110", 6),
    ("rank=range(0,inf)", "R110", 6),
    ("rank=shuffle(range(0,1000000000))", "R110", 6),
    (f"rank={'[' * 600}{']' * 600}", "R110", 6),
    (f"rank={'{a:' * 600}1{'}' * 600}", "R110", 6),
    ("model=nowhere/a,b", "R115", 7),
    ("placement=glob(*)", "R110", 11),
    ("rank=[1", "R110", 6),
    ("rank='a", "R110", 6),
    ("seed=-1", "R103", 6),
    ("seed=true", "R102", 6),
    ("revision=12", "R102", 10),
    ("train=copies", "R102", 7),
    ("rank=${nope}", "R114", 6),
    ("rank=${knobs.rank}", "R114", 6),
    ("placement=???", "R104", 11),
    ("hydra.run.dir=x", "R109", 1),
    ("name=x", "R109", 1),
    ("defaults=[lora]", "R109", 1),
]


_BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 30))


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (_BOMB, "R111"),
        ("knobs: &a {x: 1, <<: *a}\n", "R111"),
        ("train: &a [*a]\n", "R111"),
        (f"description: {'x' * 600_000}\n", "R111"),
        (f"defaults: [{'a' * 300}, _self_]\n", "R113"),
    ],
    ids=["bomb", "merged into itself", "inside itself", "large", "long name"],
)
def test_a_file_that_means_too_much_is_refused_at_once(write, content, code):
    assert [found for found, _ in located_codes(write(content))] == [code]


@pytest.mark.parametrize(("typed", "code", "column"), OVERRIDES, ids=[o[0][:40] for o in OVERRIDES])
def test_mistake_in_an_override_is_reported_with_its_location(typed, code, column):
    assert (code, f"<override 1>:1:{column}") in located_codes("genieblue_skip", typed)


def test_an_error_inside_a_union_is_reported_without_its_other_branches():
    words = "stages={a: {data: {sight: {fil: a.json}}}}"
    assert [code for code, _ in located_codes("genieblue_skip", words)] == ["R104", "R101"]


def test_an_override_into_a_list_is_a_recipe_error():
    assert [code for code, _ in located_codes("genieblue_skip", "train.copies.copies=None")] == [
        "R110"
    ]


REMEDIES = [
    ("revision: on\n", 'quote it: "on"'),
    ("train: decoder\n", "write [decoder]"),
    ("seed: -1\n", "should be at least 0, and is -1"),
    ('description: "\\ud800"\n', "write the character itself"),
    ("knobz: {}\n", "did you mean `knobs`?"),
    ("operations: {a: {op: lora, blocks: all, rnk: 3}}\n", "did you mean `rank`?"),
    ("operations: {a: {op: lora, blocks: all, peft: {use_dra: true}}}\n", "`use_dora`?"),
    ("operations: {a: {op: lora, blocks: 3}}\n", "a single block is written as a list: [3]"),
    ("operations: {a: {op: lora, blocks: {}}}\n", "write all, none, pre n/d"),
    ("operations: {a: {op: lora, blocks: all, alpha: yes}}\n", "should be a number, and is True"),
    ("operations: {a: {op: lora, blocks: all, alpha: .inf}}\n", "should be a finite number"),
    ("operations: {a: {op: lora, blocks: all, modules: []}}\n", "a list that is not empty"),
    (
        "operations: {a: {op: lora, blocks: all, peft: {init_lora_weights: x}}}\n",
        "true or false or 'gaussian', 'pissa', 'olora' or 'orthogonal'",
    ),
    ("operations: {a: {op: duplicat, blocks: all}}\n", "did you mean `duplicate`?"),
    (
        "operations: {a: {blocks: all}}\n",
        "add `op:` with one of drop, duplicate, expert, insert, learner, lora",
    ),
    ("stages: {a: {data: {file: x.jsonl, images: p}}}\n", "name it: `data: {captions: {file:"),
    ("stages: {a: {data: ''}}\n", "should be text that is not empty"),
    ("stages: {a: {data: {b: {file: ''}}}}\n", "should be text that is not empty"),
    ("knobs: {a: [1]}\n", "true or false, an integer, a number or text, and is [1]"),
]


@pytest.mark.parametrize(("content", "remedy"), REMEDIES, ids=[r[1] for r in REMEDIES])
def test_message_shows_the_way_out(write, content, remedy):
    assert remedy in words(write(f"defaults: [base, _self_]\n{content}"))


def test_unknown_recipe_names_the_nearest(write):
    assert "did you mean `genieblue_skip`?" in words("genieblu_skip")
    assert "rename it to mine.yaml" in words(write(MINE, "mine.yml"))
    assert "known are cogvlm_full" in words("xyz/qqq")
    os.mkdir("folder.yaml")
    assert located_codes("folder.yaml") == [("R112", "")]


def test_packaged_parent_with_a_typo_names_the_nearest(write):
    assert "did you mean `lora`?" in words(write("defaults: [lorra, _self_]\n"))


def test_resolved_recipe_reads_back_as_the_same(write):
    recipe = load_recipe("genieblue_skip", ["operations.copies.blocks=[0,-1]"])
    again = type(recipe).model_validate(recipe.resolved())
    assert again.resolved() == recipe.resolved()
    assert again.operations == recipe.operations


def test_error_shows_the_line_and_carets(write):
    text = words(write("defaults: [base, _self_]\nseeed: 1\n"))
    assert text == (
        "mine.yaml:2:1: error[R101]: unknown key `seeed`\n"
        "    2 | seeed: 1\n"
        "      | ^^^^^\n"
        "  fix: did you mean `seed`?\n"
        "  see: surgery explain R101"
    )
