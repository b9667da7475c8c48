"""No command removes, replaces or writes into what it reads, and no file that nobody asked for."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import surgery.adapter.folder
import surgery.evaluation.evaluate
import surgery.lint.linter
import surgery.model.source
from surgery.cli import build_app
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.recipe.loading import load_recipe
from surgery.storage.staging import staged_folder
from surgery.training.run_folder import work_folder

BUILTIN = surgery.model.source.BUILTIN_FOLDER
LORA = """\
model: models/base
train: [a]
operations:
  a: {op: lora, blocks: all, modules: [attention], rank: 2, alpha: 4}
"""
PARENT = f"defaults: [base, _self_]\n{LORA}"
MINE = f"defaults: [parent, _self_]\n{LORA}"
TALK = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of work: models, an adapter, a plan, recipes and data, each where a `plan.json` is.

    By that file `--overwrite` takes a folder for its own.
    """
    root = tmp_path_factory.mktemp("made")
    for name in ("tiny-qwen2", "tiny-vit"):
        shutil.copytree(BUILTIN / name, root / "models" / ("base" if "qwen" in name else "tower"))
    for folder in ("recipes", "talk"):
        (root / folder).mkdir()
    (root / "recipes" / "parent.yaml").write_text(PARENT)
    (root / "recipes" / "mine.yaml").write_text(MINE)
    (root / "talk" / "talk.jsonl").write_text(f"{json.dumps(TALK)}\n" * 8)
    (root / "link").symlink_to("models/base")
    (root / "adapters").symlink_to("models")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        done("apply", "lora", "model=models/base", "rank=2", "--out", "ad")
        done("plan", "lora", "model=models/base", "--out", "recipes/plan.json")
    for folder in ("models/base", "models/tower", "models", "talk"):
        shutil.copy(root / "recipes" / "plan.json", root / folder)
    return root


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


def done(*words: str) -> None:
    result = CliRunner().invoke(build_app(), words)
    assert result.exit_code == 0, result.output or result.exception


def code_of(*words: str) -> str:
    error = CliRunner().invoke(build_app(), words).exception
    assert isinstance(error, SurgeryError), error
    return error.diagnostics[0].code


def tree(folder: Path) -> dict[str, str]:
    """Every file with the hash of its bytes, and every folder and link."""
    names = sorted(path for path in folder.rglob("*"))
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else ""
        for path in names
    }


APPLY = ("apply", "recipes/mine.yaml")
PLANNED = ("apply", "recipes/plan.json")
IN_PLACE = ("apply", "solar", "model=./link")
EXPORT = ("export", "ad")
ASSEMBLE = ("assemble", "sighted", "model=models/base", "vision=models/tower", "tiles=1")
TRAIN = ("train", "recipes/mine.yaml", "data=talk/talk.jsonl", "steps=1", "batch=2", "length=64")
ON = ("train", "ad", "data=talk/talk.jsonl", "steps=1", "batch=2", "length=64")
SWEEP = ("sweep", "recipes/mine.yaml", "model=models/base,link", "--job", "apply")
CASES = [
    *((APPLY, out) for out in ("models/base", "link", "adapters/base/x", "models", "recipes")),
    *((PLANNED, out) for out in ("recipes", "models/base/../base")),
    *((IN_PLACE, out) for out in ("link", "models/base")),
    *((EXPORT, out) for out in ("ad", "ad/", "../{}/ad", "ad/export", "models/base", "link/x")),
    *((ASSEMBLE, out) for out in ("models/tower", "models/base", "models", "models/tower/x/y")),
    *((TRAIN, out) for out in ("talk", "recipes", "models/base", "link/x")),
    *((ON, out) for out in ("ad", "talk", "ad/x")),
    *((SWEEP, out) for out in ("models/base", "link/x", "models", "recipes", ".")),
]  # fmt: skip


@pytest.mark.parametrize(("words", "out"), CASES, ids=lambda value: str(value)[:40])
def test_output_that_would_harm_what_is_read_is_refused(
    words: tuple[str, ...], out: str, here: Path
) -> None:
    before = tree(here)
    flags = () if words is SWEEP else ("--overwrite",)
    assert code_of(*words, "--out", out.format(here.name), *flags) == "A306"
    assert tree(here) == before


def test_parent_of_which_no_key_is_left_is_read_all_the_same(here: Path) -> None:
    assert here / "recipes" / "parent.yaml" in {
        item.path for item in load_recipe("recipes/mine.yaml").inputs()
    }


def test_checkpoints_never_go_into_what_is_read(here: Path) -> None:
    """The base is called as the folder of checkpoints would be, which `--overwrite` begins anew."""
    base = shutil.copytree("models/base", work_folder(here / "new"))
    before = tree(here)
    words = ("train", "lora", f"model={base}", *TRAIN[2:])
    assert code_of(*words, "--out", "new", "--overwrite") == "A306"
    assert code_of(*TRAIN, "--out", "new", "--overwrite") == "A305"
    assert tree(here) == before
    shutil.rmtree(base)


def test_plan_is_saved_over_a_plan_alone(here: Path) -> None:
    words = ("plan", "recipes/mine.yaml", "--out")
    (here / "thesis.txt").write_text("years of work")
    (here / "mine").mkdir()
    (here / "mine" / "to-base").symlink_to(here / "models" / "base" / "config.json")
    before = tree(here)
    for out, code in {
        "recipes/mine.yaml": "A301",
        "recipes/parent.yaml": "A301",
        "recipes/base.json": "",
        "models/base/config.json": "A301",
        "models/base/new.json": "A306",
        "models/base/plan.json": "A301",
        "link/new.json": "A306",
        "mine/to-base": "A301",
        "thesis.txt": "A301",
        "talk/talk.jsonl": "A301",
        "ad/plan.json": "A301",
        "ad": "A304",
        "x" * 300: "A304",
    }.items():
        assert code_of(*words, out) == code if code else not done(*words, out)
    (here / "recipes" / "base.json").unlink()
    assert tree(here) == before
    for rank in (2, 3):
        done("plan", "recipes/mine.yaml", f"operations.a.rank={rank}", "--out", "p.json")
    assert '"rank": 3' in Path("p.json").read_text()
    done(*words, "/dev/null")
    assert Path("/dev/null").is_char_device()


def test_result_of_a_lint_is_never_written_over_what_is_linted(here: Path) -> None:
    before = tree(here)
    for subject, out in {
        "recipes/mine.yaml": "recipes/mine.yaml",
        "./recipes/mine.yaml": "recipes/parent.yaml",
        "recipes/../recipes/mine.yaml": "models/base/config.json",
        "ad": "ad/report.txt",
        "models/base": "models/base/config.json",
        "models/base/config.json": "link/report.txt",
        "./ad": "models/base/config.json",
        "ad/plan.json": "link/report.txt",
    }.items():
        assert code_of("lint", subject, "--out", out) == "A306"
    assert code_of("lint", "lora", "--out", "models/base/model.safetensors") == "A301"
    assert tree(here) == before
    for _ in range(2):
        CliRunner().invoke(build_app(), ["lint", "lora", "--out", "report.txt"])
        assert "lora" in Path("report.txt").read_text()


def test_a_file_that_could_not_be_written_is_refused_before_the_work(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation takes hours, and a proof minutes."""
    never = lambda *_, **__: pytest.fail("the work began")  # noqa: E731
    monkeypatch.setattr(surgery.evaluation.evaluate, "load_processor", never)
    monkeypatch.setattr(surgery.lint.linter, "lint_subject", never)
    (here / "talk" / "seen.txt").write_text("a picture, says its record")
    before = tree(here)
    evaluate = ("evaluate", "ad", "--questions", "talk/talk.jsonl", "--predictions")
    for out, code in {
        "models/base/config.json": "A306",
        "link/new.jsonl": "A306",
        "talk": "A306",
        "talk/talk.jsonl": "A306",
        "ad/new.jsonl": "A306",
        "recipes": "A304",
        "no/such/folder.jsonl": "A304",
        "x" * 300: "A304",
    }.items():
        assert code_of(*evaluate, out) == code
    for out in ("recipes", "no/such/folder.jsonl", "x" * 300):
        assert code_of("lint", "lora", "--out", out) == "A304"
    for text in ("{", "[]", "{}", '{"perplexity": {"base": "x"}, "accuracy": {}}'):
        (here / "bad.json").write_text(text)
        assert code_of("evaluate", "ad", "--reference", "bad.json") == "A316"
    (here / "bad.json").unlink()
    assert tree(here) == before


def test_recipe_is_copied_to_a_new_file_alone(here: Path) -> None:
    (here / "nothing.yaml").symlink_to("nowhere.yaml")
    before = tree(here)
    for out in ("nothing.yaml", "recipes/mine.yaml"):
        assert code_of("recipes", "copy", "lora", out) == "A301"
    assert tree(here) == before


def test_sweep_leaves_tables_that_are_not_its_own(tmp_path: Path, here: Path) -> None:
    (tmp_path / "results.csv").write_text("years of work")
    assert code_of("sweep", "lora", "rank=2,4", "--out", str(tmp_path)) == "A301"
    assert (tmp_path / "results.csv").read_text() == "years of work"


def test_sweep_goes_into_no_folder_that_another_command_may_replace(here: Path) -> None:
    before = tree(here)
    assert code_of("sweep", "lora", "rank=2,4", "--out", "ad") == "A301"
    assert tree(here) == before


def test_of_two_commands_the_second_is_refused_at_once(
    tmp_path: Path, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second, in a process of its own, is begun while the first is at work."""
    write = surgery.adapter.folder.write_safetensors
    out = str(tmp_path / "out")
    said = []

    def meanwhile(*given: Any, **named: Any) -> None:
        words = ["apply", "lora", "rank=4", "--out", out, "--overwrite"]
        second = [sys.executable, "-m", "surgery", *words]
        said.append(subprocess.run(second, capture_output=True, text=True, check=False))
        write(*given, **named)

    monkeypatch.setattr(surgery.adapter.folder, "write_safetensors", meanwhile)
    done("apply", "lora", "rank=2", "--out", out)
    assert said[0].returncode == 3
    assert "error[A307]" in said[0].stderr
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["recipe"]["knobs"]["rank"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_weights_can_be_read_by_whom_new_files_can(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with staged_folder(tmp_path / "out") as folder:
            save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
            (folder / "config.json").write_text("{}")
    finally:
        os.umask(before)
    modes = {file.stat().st_mode & 0o777 for file in (tmp_path / "out").iterdir()}
    assert modes == {0o640}
    assert len(list((tmp_path / "out").iterdir())) == 2
