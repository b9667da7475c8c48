"""Lint of plans: what must hold for packaged recipes, places, `allow`, memory, and no torch."""

import functools
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from surgery.diagnostics.diagnostic import SurgeryError
from surgery.lint.base import PlanRule, known_rules
from surgery.lint.code_pages import page_of, rule_pages
from surgery.lint.rule_runner import lint_plan
from surgery.npu.deployment import deployment
from surgery.npu.memory_footprint import footprints, parts_within, read_scheme
from surgery.npu.target import known_targets, load_target
from surgery.plan.planner import plan_recipe
from surgery.plan.serialization import recipe_of, to_json
from surgery.plugins import names_in
from surgery.recipe.loading import load_recipe
from surgery.recipe.recipe_file import packaged_recipes

PHONES = list(known_targets())
SNAPDRAGONS = [name for name in PHONES if name.startswith("snapdragon")]
DENSE = ["builtin/tiny-qwen2", "builtin/qwen2.5-3b", "builtin/gemma-3-1b", "builtin/llama-3.2-3b"]
DEPLOYABLE = ["genieblue_pre", "genieblue_post", "genieblue_skip", "lora", "full_finetune"]
ROUTED = ["cogvlm_pre", "cogvlm_post", "cogvlm_skip", "cogvlm_full", "wings"]
GIGABYTE = 10**9


@functools.cache
def planned(recipe, *overrides):
    return plan_recipe(load_recipe(recipe, overrides))


def found_in(recipe, target="snapdragon", *overrides, **how):
    return lint_plan(planned(recipe, *overrides), load_target(target), **how)


def severities(findings):
    return {finding.severity for finding in findings}


@pytest.mark.parametrize("target", SNAPDRAGONS)
@pytest.mark.parametrize("model", DENSE)
@pytest.mark.parametrize("recipe", DEPLOYABLE)
def test_dense_recipes_have_no_error(recipe, model, target):
    found = found_in(recipe, target, f"model={model}")
    assert "error" not in severities(found)
    assert "warning" not in severities(found) or recipe == "full_finetune"


@pytest.mark.parametrize("target", PHONES)
@pytest.mark.parametrize("recipe", ROUTED)
def test_routed_recipes_are_rejected_as_shipped(recipe, target):
    errors = [f for f in found_in(recipe, target) if f.severity == "error"]
    assert [f.rule for f in errors] == ["routed-learner" if recipe == "wings" else "routed-expert"]


@pytest.mark.parametrize("target", PHONES)
@pytest.mark.parametrize("form", ["blend", "segments"])
@pytest.mark.parametrize("recipe", [name for name in ROUTED if name != "wings"])
def test_static_experts_are_warned_of(recipe, form, target):
    found = found_in(recipe, target, f"form={form}")
    assert "error" not in severities(found)
    assert "resident-experts" in {f.rule for f in found if f.severity == "warning"}


def test_every_packaged_recipe_is_decided_one_way():
    rejected = {n for n in packaged_recipes() if "error" in severities(found_in(n))}
    assert rejected == set(ROUTED)


def test_finding_stands_at_its_place_in_the_recipe():
    found = found_in("cogvlm_skip", "snapdragon", "form=gather")
    (error,) = (f for f in found if f.severity == "error")
    assert error.span is not None
    assert error.span.marked() == "${knobs.form}" or error.span.file.startswith("<override")
    assert error.subject == "cogvlm_skip"
    assert "proved: onnxruntime-qnn 2.7.0" in str(error)


def allowing(folder, *lines):
    file = folder / "mine.yaml"
    text = ["defaults: [cogvlm_skip, _self_]", "allow:", *(f"  {line}" for line in lines)]
    file.write_text("\n".join([*text, ""]))
    return file


def test_allowed_finding_is_a_note_with_its_reason(tmp_path):
    file = allowing(tmp_path, "routed-expert: the app gathers on the CPU")
    (found,) = (f for f in found_in(file) if f.rule == "routed-expert")
    assert found.severity == "note"
    assert found.allowed == "the app gathers on the CPU"
    assert "allowed: the app gathers on the CPU" in str(found)


@pytest.mark.parametrize(
    ("line", "code", "column", "fix"),
    [
        ("routed-exprt: the app gathers itself", "R123", 3, "did you mean `routed-expert`?"),
        ("xyzzy: the app gathers itself", "R123", 3, "known are"),
        ("routed-expert: ''", "R124", 18, "why"),
        ("routed-expert: it's fine", "R124", 18, "why"),
    ],
)
def test_allow_wants_a_rule_and_a_reason(tmp_path, line, code, column, fix):
    with pytest.raises(SurgeryError) as caught:
        load_recipe(allowing(tmp_path, line))
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.code == code
    assert fix in diagnostic.fix
    assert (diagnostic.span.line, diagnostic.span.column) == (3, column)
    assert caught.value.exit_code == 2


def test_faults_of_allow_come_all_at_once(tmp_path):
    with pytest.raises(SurgeryError) as caught:
        load_recipe(allowing(tmp_path, "memry: we have seen it fit", "memory: ok", "scheme: ok"))
    assert [d.code for d in caught.value.diagnostics] == ["R123", "R124", "R124"]


def test_allow_by_override_and_in_a_saved_plan():
    recipe = load_recipe("cogvlm_skip", ['allow.routed-expert="the app gathers itself"'])
    assert recipe.resolved()["allow"] == {"routed-expert": "the app gathers itself"}
    saved = to_json({"format_version": "1.0", "recipe": recipe.resolved()})
    assert recipe_of(saved, "plan.json").resolved() == recipe.resolved()


def test_recipe_without_allow_resolves_as_before():
    resolved = load_recipe("cogvlm_skip").resolved()
    assert "allow" not in resolved
    assert recipe_of(json.dumps({"format_version": "1.0", "recipe": resolved}), "x").allow == {}


def paths_of(recipe, *overrides, context=2048, scheme="w4a16"):
    found = footprints(planned(recipe, *overrides), context, read_scheme(scheme))
    return {footprint.path: footprint for footprint in found}


@pytest.mark.parametrize(
    ("scheme", "compiled"), [("fp16", 154.5e6), ("w8a16", 77.8e6), ("w4a16", 39.4e6)]
)
def test_block_is_as_large_as_its_compiled_graph(scheme, compiled):
    """One decode block of Qwen2.5-3B, compiled for V79 with onnxruntime-qnn 2.7.0."""
    path = paths_of("lora", "model=builtin/qwen2.5-3b", context=0, scheme=scheme)["text"]
    assert path.blocks[0] == pytest.approx(compiled, rel=0.03)


def test_memory_of_the_paper_s_model_is_near_what_it_measures():
    paths = paths_of(
        "genieblue_skip", "model=builtin/bluelm-3b", "vision=builtin/siglip-so400m-patch14-384"
    )
    assert paths["multimodal"].total == pytest.approx(2.10 * GIGABYTE, rel=0.08)
    assert paths["multimodal"].cache == 32 * 2048 * 2 * 512 * 2


def test_copies_swap_and_experts_stay_beside():
    copied = paths_of("genieblue_skip", "model=builtin/qwen2.5-3b")
    assert copied["multimodal"].total == pytest.approx(copied["text"].total, rel=0.01)
    assert copied["both"].total - copied["multimodal"].total == 9 * copied_block()
    beside = paths_of("cogvlm_full", "form=blend", "model=builtin/qwen2.5-3b")
    assert beside["multimodal"].total > 1.8 * beside["text"].total
    assert beside["both"].total == beside["multimodal"].total


def copied_block():
    """A block of Qwen2.5-3B: matrices in 4 bits, two norms and three biases in 16."""
    vectors = 2 * 2048 + 2048 + 256 + 256
    return (77_076_992 - vectors) // 2 + 2 * vectors


def test_changed_depth_and_in_place_have_one_path():
    assert set(paths_of("full_finetune")) == {"multimodal"}
    deeper = paths_of("llama_pro")["multimodal"]
    assert len(deeper.blocks) == 15


def test_cut_between_blocks():
    assert parts_within([], 10) == 0
    assert parts_within([4, 4, 4, 4], 8) == 2
    assert parts_within([5, 5, 5], 9) == 3
    assert parts_within([20, 1], 10) == 2


def test_rules_are_named_as_their_files():
    rules = known_rules()
    assert sorted(rules) == sorted(f.replace("_", "-") for f in names_in("surgery.lint.rules"))
    assert len({rule.code for rule in rules.values()}) == len(rules)
    for name, rule in rules.items():
        assert re.fullmatch(r"L\d{3}", rule.code)
        assert inspect.getmodule(rule).__name__.endswith(name.replace("-", "_"))
        assert rule.known_by


@pytest.mark.parametrize("name", [n for n, r in known_rules().items() if isinstance(r, PlanRule)])
def test_docstring_of_a_rule_is_its_page(name):
    rule = known_rules()[name]
    page = page_of(rule.code)
    assert page == page_of(rule.code.lower()) == page_of(name)
    assert page.startswith(f"# {rule.code}: {name}\n")
    headings = re.findall(r"^## (.+)$", page, re.MULTILINE)
    assert headings == ["Why is it bad?", "Example", "Use instead", "Evidence"]
    assert rule_pages()[rule.code] == name


def test_lint_of_cached_recipes_imports_no_torch():
    recipes = list(packaged_recipes())
    for name in recipes:
        found_in(name)
    code = (
        "import sys\n"
        "from surgery.recipe.loading import load_recipe\n"
        "from surgery.lint.rule_runner import lint_plan\n"
        "from surgery.plan.planner import plan_recipe\n"
        "from surgery.npu.target import load_target\n"
        "phone = load_target('snapdragon')\n"
        "found = [lint_plan(plan_recipe(load_recipe(n)), phone) for n in sys.argv[1:]]\n"
        "heavy = {'torch', 'transformers', 'peft', 'onnx', 'onnx_ir', 'onnxruntime'}\n"
        "print(len(found), sorted(heavy & set(sys.modules)))\n"
    )
    run = [sys.executable, "-c", code, *recipes]
    root = Path(__file__).parents[3]
    done = subprocess.run(run, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout == f"{len(recipes)} []\n"


@pytest.mark.parametrize("target", ["snapdragon", load_target("snapdragon")], ids=["name", "it"])
def test_a_target_is_named_or_given(target):
    wanted = found_in("cogvlm_skip")
    assert wanted
    assert lint_plan(planned("cogvlm_skip"), target) == wanted
    assert deployment(planned("lora"), target).target == "snapdragon-8-elite"


def test_a_target_that_there_is_not_is_named():
    with pytest.raises(SurgeryError, match="R121"):
        lint_plan(planned("lora"), "snapdargon")
