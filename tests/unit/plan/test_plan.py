"""What a recipe means on one model: the paper's counts, who trains, what can't stand together."""

import json
from dataclasses import replace

import pytest
from clock import growth

from surgery.adapter.side_files import side_files
from surgery.cli.views.plan.table import print_plan
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.model.reader import read_anatomy
from surgery.plan.planner import make_plan, plan_recipe
from surgery.plan.serialization import FORMAT_VERSION, plan_document, recipe_in, to_json
from surgery.recipe.loading import load_recipe
from surgery.recipe.recipe_file import packaged_recipes
from surgery.storage.file_names import PLAN_FILE

QWEN = "builtin/qwen2.5-3b"
BASE = 3_085_938_688
COPIES = 693_692_928
EXPERTS = 693_656_064
LORA_WITH_COPIES = 11_225_088
LORA = 14_966_784
GENIEBLUE = ["genieblue_pre", "genieblue_post", "genieblue_skip"]
HEAD = "defaults: [base, _self_]\nmodel: builtin/qwen2.5-3b\n"


def plan_of(recipe, *overrides):
    return plan_recipe(load_recipe(recipe, [f"model={QWEN}", *overrides]))


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Plan a recipe that is given as text."""
    monkeypatch.chdir(tmp_path)

    def planned(text):
        (tmp_path / "mine.yaml").write_text(HEAD + text)
        return plan_recipe(load_recipe("mine"))

    return planned


def codes_and_lines(plan, *arguments):
    with pytest.raises(SurgeryError) as caught:
        plan(*arguments)
    return [(d.code, d.span.line if d.span else 0) for d in caught.value.diagnostics]


@pytest.mark.parametrize("recipe", GENIEBLUE)
def test_genieblue_trains_what_the_paper_counts(recipe):
    plan = plan_of(recipe)
    assert plan.by_operation() == {"copies": COPIES, "adapters": LORA_WITH_COPIES}
    assert plan.added == plan.trainable == COPIES + LORA_WITH_COPIES == 704_918_016
    assert plan.base == BASE
    assert len(plan.swaps()) == 9
    assert len(plan.loras()) == 27 * 7
    assert not plan.in_place


@pytest.mark.parametrize("recipe", ["cogvlm_pre", "cogvlm_post", "cogvlm_skip"])
def test_cogvlm_trains_what_the_paper_counts(recipe):
    plan = plan_of(recipe)
    assert plan.by_operation() == {"experts": EXPERTS, "adapters": LORA_WITH_COPIES}
    assert plan.added == plan.trainable == 704_881_152
    assert len(plan.experts()) == 9
    assert len(plan.loras()) == 27 * 7
    assert not {edit.block for edit in plan.experts()} & {edit.block for edit in plan.loras()}


def test_cogvlm_full_has_experts_in_every_block():
    plan = plan_of("cogvlm_full")
    assert plan.added == plan.trainable == 4 * EXPERTS
    assert [edit.block for edit in plan.experts()] == list(range(36))


@pytest.mark.parametrize(
    ("words", "each"),
    [("[q]", 2048 * 2048 + 2048), ("[down]", 2048 * 11008), ("[attention, mlp]", EXPERTS // 9)],
)
def test_modules_choose_which_matrices_have_experts(words, each):
    plan = plan_of("cogvlm_full", f"operations.experts.modules={words}")
    assert plan.added == 36 * each


def test_lora_trains_what_the_paper_counts():
    plan = plan_of("lora")
    assert plan.added == plan.trainable == LORA
    assert len(plan.loras()) == 36 * 7


def test_full_finetune_trains_the_whole_decoder_and_adds_nothing():
    plan = plan_of("full_finetune")
    assert (plan.added, plan.trainable, plan.base) == (0, BASE, BASE)
    assert plan.in_place
    assert plan.edits == ()


@pytest.mark.parametrize(
    ("placement", "blocks"),
    [("pre", range(9)), ("post", range(27, 36)), ("skip", range(3, 36, 4))],
)
def test_placement_copies_those_blocks_and_adapts_the_rest(placement, blocks):
    plan = plan_of("genieblue_skip", f"placement={placement}")
    assert [edit.block for edit in plan.swaps()] == list(blocks)
    assert {edit.block for edit in plan.loras()} == set(range(36)) - set(blocks)
    assert plan.swaps()[0].path == f"model.layers.{blocks[0]}"


@pytest.mark.parametrize("rank", [1, 4, 64])
def test_lora_parameters_grow_with_the_rank(rank):
    assert plan_of("lora", f"rank={rank}").added == LORA // 8 * rank


def test_rest_is_what_no_other_operation_picks_wherever_it_stands(written):
    plan = written(
        "operations:\n"
        "  first: {op: lora, blocks: rest, modules: [q]}\n"
        "  copies: {op: duplicate, blocks: pre 1/2}\n"
        "  second: {op: lora, blocks: [-1], modules: [q]}\n"
        "train: [first]\n"
    )
    first = [edit.block for edit in plan.edits if edit.operation == "first"]
    assert first == list(range(18, 35))
    assert plan.edits[0].operation == "first"
    assert plan.trainable == plan.by_operation()["first"] < plan.added


@pytest.mark.parametrize(
    ("train", "freeze", "count"),
    [
        ("[decoder]", "[]", BASE),
        ("[blocks]", "[]", 36 * 77_076_992),
        ("[embeddings]", "[]", 151_936 * 2048),
        ("[head]", "[]", 151_936 * 2048),  # tied with the embeddings, counted once
        ("[embeddings, head]", "[]", 151_936 * 2048),
        ("[norm]", "[]", 2048),
        ("[decoder]", "[blocks, norm]", 151_936 * 2048),
        ("['model.layers.0.*']", "[]", 77_076_992),
        ("['*.q_proj.bias']", "[]", 36 * 2048),
        ("[lm_head.weight]", "[]", 151_936 * 2048),
        ("[blocks]", "['model.layers.[1-9].*', 'model.layers.??.*']", 77_076_992),
    ],
)
def test_words_of_train_and_freeze_mean_parts_and_globs(written, train, freeze, count):
    assert written(f"train: {train}\nfreeze: {freeze}\n").trainable == count


OPERATIONS = """\
operations:
  copies: {op: duplicate, blocks: [3]}
  adapters: {op: lora, blocks: rest}
"""


@pytest.mark.parametrize(
    ("train", "freeze", "count"),
    [
        ("[copies]", "[]", 77_076_992),
        ("['copies:*.mlp.*']", "[]", 3 * 2048 * 11008),
        ("[copies]", "['copies:*norm*']", 77_076_992 - 2 * 2048),
        ("['adapters:*lora_A*']", "[]", 8 * (6 * 2048 + 11008) * 35),
        ("[copies, adapters]", "[adapters]", 77_076_992),
    ],
)
def test_words_reach_into_operations(written, train, freeze, count):
    plan = written(f"{OPERATIONS}train: {train}\nfreeze: {freeze}\n")
    assert plan.trainable == count
    assert not plan.in_place


def test_absent_vision_is_a_note_and_no_error():
    plan = plan_of("lora")
    assert [(note.code, note.severity) for note in plan.notes] == [("P212", "note")]
    assert plan.notes[0].what == f"{QWEN} has no vision and no projector to train"


def test_stages_replace_train_and_the_last_one_counts(written):
    stages = "stages:\n  warm: {train: [adapters]}\n  main: {train: [adapters, copies]}\n"
    plan = written(OPERATIONS + stages)
    assert [stage.name for stage in plan.stages] == ["warm", "main"]
    assert plan.trainable_in(plan.stages[0]) == plan.by_operation()["adapters"]
    assert plan.trainable == plan.added
    found = plan_document(plan, 0, 0, None)["stages"]
    assert [stage["trainable"] for stage in found] == [
        plan.by_operation()["adapters"],
        plan.added,
    ]


CONFLICTS = [
    ("train: [decodr]\n", [("P201", 3)]),
    ("train: [decoder, 'x.*']\nfreeze: [nope]\n", [("P201", 4), ("P201", 3)]),
    ("stages: {a: {train: [nope]}}\n", [("P201", 3)]),
    ("operations: {a: {op: lora, blocks: [36]}}\ntrain: [a]\n", [("P202", 3)]),
    ("operations: {a: {op: lora, blocks: pre 1/40}}\ntrain: [a]\n", [("P202", 3)]),
    ("operations: {a: {op: lora, blocks: all, modules: [router, q]}}\ntrain: [a]\n", [("P203", 3)]),
    (
        "operations:\n  a: {op: lora, blocks: all}\n  b: {op: duplicate, blocks: [1]}\n"
        "train: [a]\n",
        [("P204", 4)],
    ),
    (
        "operations:\n  a: {op: duplicate, blocks: 0-3}\n  b: {op: duplicate, blocks: [1]}\n"
        "train: [a]\n",
        [("P205", 5)],
    ),
    (
        "operations:\n  a: {op: lora, blocks: 0-3}\n  b: {op: lora, blocks: all, modules: [q]}\n"
        "train: [a]\n",
        [("P205", 5)],
    ),
    ("operations: {a: {op: lora, blocks: all}}\ntrain: [a, norm]\n", [("P207", 4)]),
    ("operations: {a: {op: lora, blocks: all, rank: 300}}\ntrain: [a]\n", [("P208", 3)]),
    (
        "operations:\n  a: {op: lora, blocks: 0-3}\n"
        "  b: {op: lora, blocks: rest, peft: {use_rslora: true}}\ntrain: [a]\n",
        [("P209", 5)],
    ),
    ("train: []\n", [("P211", 3)]),
    ("operations: {a: {op: lora, blocks: none}}\ntrain: [a]\n", [("P211", 4)]),
]


@pytest.mark.parametrize(("text", "expected"), CONFLICTS, ids=[c[1][0][0] for c in CONFLICTS])
def test_conflict_is_reported_with_its_line(written, text, expected):
    assert codes_and_lines(written, text) == expected


LORA_ON_EXPERTS = """
operations:
  experts: {op: expert, blocks: [3]}
  adapters: {op: lora, blocks: all, modules: [mlp]}
train: [experts, adapters]
"""
TWO_RULES = """
operations:
  first: {op: expert, blocks: [3], boundary: cogvlm}
  second: {op: expert, blocks: [4]}
train: [first, second]
"""


@pytest.mark.parametrize(("text", "code"), [(LORA_ON_EXPERTS, "P204"), (TWO_RULES, "P209")])
def test_experts_stand_alone_and_follow_one_rule(written, text, code):
    assert [found for found, _ in codes_and_lines(written, text)] == [code]


def test_quantized_base_is_not_copied():
    recipe = load_recipe("genieblue_skip", [f"model={QWEN}"])
    packed = read_anatomy(QWEN).model_copy(update={"quantization": "bitsandbytes"})
    assert codes_and_lines(make_plan, recipe, packed) == [("P206", 7)]
    assert make_plan(load_recipe("lora"), packed).added == LORA


def test_all_conflicts_are_reported_together(written):
    text = (
        "operations:\n  a: {op: lora, blocks: [99]}\n  b: {op: lora, blocks: all, modules: [w]}\n"
        "  c: {op: lora, blocks: all, rank: 999}\ntrain: [nope]\n"
    )
    assert codes_and_lines(written, text) == [("P202", 4), ("P203", 5), ("P208", 6), ("P201", 7)]


def test_unknown_model_is_reported_where_it_is_named():
    with pytest.raises(SurgeryError) as caught:
        plan_recipe(load_recipe("lora", ["model=builtin/qwen2.5-4b"]))
    (diagnostic,) = caught.value.diagnostics
    assert (diagnostic.code, str(diagnostic.span)) == ("M101", "<override 1>:1:7")
    assert "did you mean `builtin/qwen2.5-3b`?" in diagnostic.fix
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("recipe", packaged_recipes())
def test_document_counts_itself_and_has_the_same_keys(recipe):
    plan = plan_of(recipe)
    files = side_files(plan, None)
    document = json.loads(files[PLAN_FILE])
    assert list(document) == [
        "format_version",
        "surgery",
        "recipe",
        "model",
        "edits",
        "depth",
        "parameters",
        "stages",
        "bytes",
        "diagnostics",
    ]
    counts = document["parameters"]
    assert counts["total"] == counts["base"] + counts["added"] - counts["removed"]
    assert counts["frozen"] == counts["total"] - counts["trainable"]
    assert counts["added"] == sum(counts["by"].values())
    assert counts["added"] == sum(edit["parameters"] for edit in document["edits"])
    assert to_json(document).encode() == files[PLAN_FILE]


def test_plan_is_the_same_every_time():
    first, second = plan_of("genieblue_skip"), plan_of("genieblue_skip")
    assert first.edits == second.edits
    assert first.stages == second.stages
    assert side_files(first, None) == side_files(second, None)


def deep_plan(recipe, blocks):
    """A recipe on the tiny model with that many blocks."""
    anatomy = read_anatomy("builtin/tiny-qwen2")
    return make_plan(load_recipe(recipe), anatomy.model_copy(update={"sequence": (0,) * blocks}))


@pytest.mark.parametrize("recipe", ["genieblue_skip", "full_finetune", "solar"])
def test_the_table_of_a_plan_takes_time_by_its_blocks_and_no_more(recipe, capsys):
    plans = {blocks: deep_plan(recipe, blocks) for blocks in (250, 2000)}
    # eight times the blocks; squared, it would be 64 times
    assert growth(lambda blocks: print_plan(plans[blocks], 0), 250, 2000) < 24


def test_one_is_no_plural(capsys):
    one = "operations.copies.blocks=[3]"
    print_plan(plan_of("genieblue_skip", one, "operations.adapters.modules=[q]"), 0)
    found = capsys.readouterr().out
    assert "1 block copied, LoRA on 35 matrices." in found
    assert "LoRA rank 8 on 1 matrix " in found
    with pytest.raises(SurgeryError, match="puts LoRA on 1 block that `copies` copies"):
        plan_of("genieblue_skip", one, "operations.adapters.blocks=all")


def test_a_long_table_groups_identical_blocks(capsys):
    print_plan(deep_plan("genieblue_skip", 48), 0)
    print_plan(deep_plan("genieblue_skip", 2000), 0)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[1] for line in lines if line[:1] == ["~"]][:2] == ["3", "7"]
    assert [line[1] for line in lines[-3:-1]] == ["0-2,4-6,8-10,…,1996-1998", "3,7,11,…,1999"]
    assert len(lines) == 27 + 5


def test_a_plan_and_an_anatomy_show_themselves_in_one_line():
    plan = plan_of("genieblue_skip")
    for thing, expected in (
        (plan, "genieblue_skip on builtin/qwen2.5-3b"),
        (plan.anatomy, "36 blocks"),
    ):
        assert expected in repr(thing)
        assert len(repr(thing)) < 200


def test_a_printed_plan_is_the_table_that_the_command_prints(capsys):
    for name in ("genieblue_skip", "full_finetune", "solar"):
        plan = plan_of(name)
        print_plan(plan, 0)
        assert str(plan) == capsys.readouterr().out.strip().removesuffix(" 0 B to write.")


def test_a_plan_in_a_notebook_is_escaped():
    plan = plan_of("lora", "description=x")
    plan = replace(plan, recipe=plan.recipe.model_copy(update={"name": "<script>"}))
    assert "<script>" not in plan._repr_html_()
    assert "&lt;script&gt; on builtin/qwen2.5-3b" in plan._repr_html_()


@pytest.mark.parametrize("key", ["seed", "model", "tiles"])
def test_a_saved_plan_whose_recipe_is_wrong_is_refused_by_the_key(key: str) -> None:
    document = {"format_version": FORMAT_VERSION, "recipe": load_recipe("lora").resolved()}
    assert recipe_in(document, "plan.json").name == "lora"
    with pytest.raises(SurgeryError, match=rf"why: `recipe\.{key}`"):
        recipe_in({**document, "recipe": {**document["recipe"], key: [1]}}, "plan.json")
