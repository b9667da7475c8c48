"""A folder where something else is meant: what it is, what takes it, and which is named alike."""

from pathlib import Path

import pytest

from surgery.cli import build_app
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.storage.folder_kinds import kind_of, near_paths

FOLDERS = {
    "adapter": ("plan.json", "adapter_config.json", "recipe.yaml"),
    "trained-base": ("plan.json", "config.json", "recipe.yaml"),
    "export": ("manifest.json", "plan.json"),
    "sweep": ("points.json",),
    "checkpoint": ("config.json",),
    "foreign": ("adapter_config.json",),
    "empty": (),
}
RECIPES = {
    "adapter": ("is an adapter, not a recipe", "`surgery verify`"),
    "trained-base": ("is an adapter, not a recipe", "recipe is `trained-base/recipe.yaml`"),
    "export": ("is an export, not a recipe", "`surgery run`"),
    "sweep": ("is a sweep, not a recipe", "numbered folders"),
    "checkpoint": ("is a checkpoint, not a recipe", "`model=`"),
    "foreign": ("is an adapter of plain PEFT, not a recipe", "plan.json"),
    "empty": ("is a folder, not a recipe", "`surgery recipes list`"),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, files in FOLDERS.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text("{}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def output(*words: str) -> str:
    with pytest.raises(SurgeryError) as caught:
        build_app()(list(words), standalone_mode=False)
    return str(caught.value)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("command", ["plan", "apply", "sweep"])
def test_folder_where_a_recipe_is_meant(command: str, name: str, here: Path) -> None:
    text = output(command, name)
    assert "error[R112]" in text
    for words in RECIPES[name]:
        assert words in text


@pytest.mark.parametrize("name", ["checkpoint", "foreign"])
def test_folder_where_an_adapter_is_meant(name: str, here: Path) -> None:
    kind = kind_of(here / name)
    assert kind is not None
    text = output("verify", name)
    assert "error[A402]" in text
    assert kind.what in text
    assert kind.taken_by in text


def test_folder_where_an_export_is_meant(here: Path) -> None:
    text = output("run", "adapter", "--path", "text", "--prompt", "x")
    assert "error[A601]" in text
    assert "it is an adapter" in text


MISSPELLED = {
    ("verify", "adaptr"): "did you mean `adapter`?",
    ("evaluate", "adaptr"): "did you mean `adapter`?",
    ("export", "adaptr"): "did you mean `adapter`?",
    ("train", "adaptr"): "did you mean `adapter`?",
    ("lint", "adaptr"): "did you mean `adapter`?",
    ("run", "exprt", "--path", "text", "--prompt", "x"): "did you mean `export` or `empty`?",
    ("plan", "genieblue_skop"): "did you mean `genieblue_skip`?",
    ("plan", "lora", "model=./checkpiont"): "did you mean `checkpoint`?",
    ("plan", "lora", "vision=./checkpiont"): "did you mean `checkpoint`?",
}


@pytest.mark.parametrize("words", MISSPELLED, ids=" ".join)
def test_misspelled_folder_is_named(words: tuple[str, ...], here: Path) -> None:
    assert MISSPELLED[words] in output(*words)


def test_near_paths_compare_the_part_that_is_missing(here: Path) -> None:
    (here / "a" / "models" / "llama").mkdir(parents=True)
    (here / "a" / "model").mkdir()
    assert near_paths("a/modles/llama") == ["a/models/llama"]
    assert near_paths("a/modles/qwen") == []
    assert near_paths(here / "a" / "MODEL") == [str(here / "a/model"), str(here / "a/models")]
    assert near_paths("empty") == []
    assert near_paths("x" * 300) == []
    assert near_paths("") == []


FORMS = {
    "mlx": "begin with `--to hf`",
    "GGUF": "did you mean `--to gguf`?",
    "ollama": "begin with `--to gguf`",
    "snapdragon": "begin with `--to qnn`",
    "pte": "begin with `--to executorch`",
    "onyx": "did you mean `--to onnx`?",
    "nonesuch": "choose one of executorch, gguf, hf, onnx, ort-genai, peft-lora, qnn",
}


@pytest.mark.parametrize("form", FORMS)
def test_unknown_form_of_export_lists_what_there_is(form: str) -> None:
    from surgery.export.base import known_exporters
    from surgery.export.export import _exporter

    with pytest.raises(SurgeryError) as caught:
        _exporter(form)
    (found,) = caught.value.diagnostics
    assert found.fix.startswith(FORMS[form])
    assert all(f"`{word}` ({e.gives})" in found.why for word, e in known_exporters().items())


@pytest.mark.parametrize("command", ["plan", "apply", "recipes show"])
@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("notes.txt", "whose name doesn't end in .yaml"),
        ("builtin/tiny-qwen2", "model=builtin/tiny-qwen2"),
        ("", "the recipe's name is empty"),
        ("kept/mien.yaml", "did you mean `kept/mine.yaml`?"),
        ("kpet/mine.yaml", "did you mean `kept/mine.yaml`?"),
    ],
)
def test_what_is_no_recipe_is_said(command: str, typed: str, words: str, here: Path) -> None:
    (here / "kept").mkdir()
    (here / "kept" / "mine.yaml").write_text("model: builtin/tiny-qwen2\n")
    (here / "notes.txt").write_text("x")
    text = output(*command.split(), typed)
    assert "error[R112]" in text
    assert words in text
    assert (words.startswith("did")) == ("no such file" in text)


@pytest.mark.parametrize("command", ["verify", "evaluate", "export"])
def test_why_a_path_is_no_adapter(command: str, here: Path) -> None:
    (here / "notes.txt").write_text("x")
    for typed, why in (("notes.txt", "it is a file"), ("empty", "it has no plan.json")):
        text = output(command, typed)
        assert f"why: {why}\n" in text
        assert "Errno" not in text


PLACES = {
    ("plan", "lora", "--out", "empty"): "name a file",
    ("plan", "lora", "--out", "no/such/p.json"): "mkdir -p",
    ("plan", "lora", "--out", "notes.txt/p.json"): "`{here}/notes.txt` is a file, not a folder",
    ("recipes", "copy", "lora", "no/such.yaml"): "mkdir -p {here}/no",
    ("recipes", "copy", "lora", "notes.txt"): "choose another path",
    ("samples", "notes.txt"): "choose another path",
}


@pytest.mark.parametrize("words", PLACES, ids=" ".join)
def test_fix_fits_the_path(words: tuple[str, ...], here: Path) -> None:
    (here / "notes.txt").write_text("x")
    text = output(*words)
    assert PLACES[words].format(here=here) in text
    assert "--out" not in text
    assert "check the disk" not in text
    assert not (here / "no").exists()
