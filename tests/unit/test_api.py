"""The functions of `surgery` as a Python package: paths as text, options by name, no chatter."""

import inspect
import typing
import warnings
from pathlib import Path
from typing import Any

import pytest
from tiny import planned, save_tiny, tiny_model, tokens

import surgery
from surgery.adapter.folder import load_plan
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.export.export import ExportOptions, prepare_export
from surgery.model.quiet import quiet

FUNCTIONS = {
    name: function
    for name in surgery.__all__
    if inspect.isfunction(function := getattr(surgery, name))
}
PLACES = {"folder", "out", "adapter", "text", "questions", "images", "reference", "predictions"}
PLACES |= {"assembled", "calibration", "at", "recipe", "source", "file"}
VALUES = {"recipe": surgery.train_recipe, "images": None}


@pytest.mark.parametrize("name", [*FUNCTIONS, "load_plan", "prepare_export"])
def test_every_path_is_taken_as_text_or_as_a_path(name):
    function = {**FUNCTIONS, "load_plan": load_plan, "prepare_export": prepare_export}[name]
    for parameter in inspect.signature(inspect.unwrap(function)).parameters.values():
        said = str(parameter.annotation)
        assert "pathlib" not in said, parameter
        if parameter.name in PLACES and "Recipe" not in said and "Module" not in said:
            assert "str | os.PathLike[str]" in said, parameter


def test_the_options_of_an_export_are_those_of_its_preparation():
    options = dict(inspect.signature(prepare_export).parameters)
    options.pop("adapter")
    assert typing.get_type_hints(ExportOptions) == {n: p.annotation for n, p in options.items()}
    with pytest.raises(TypeError, match=r"export_adapter\(\) has no option `lroa`; .*`lora`\?"):
        surgery.export_adapter("ad", "ex", lroa="merged")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    """A base and an adapter of it."""
    place = tmp_path_factory.mktemp("api")
    save_tiny(place / "base")
    plan = surgery.plan_recipe(
        surgery.load_recipe("genieblue_skip", {"model": place / "base", "rank": 2}), weights=True
    )
    surgery.write_adapter(plan, str(place / "ad"))
    return place


@pytest.mark.parametrize("kind", [str, Path])
def test_folders_are_written_and_opened_by_text_and_by_path(folder, tmp_path, kind, monkeypatch):
    monkeypatch.chdir(tmp_path)
    adapter, base = kind(folder / "ad"), kind(folder / "base")
    assert surgery.find_model(base).folder == folder / "base"
    plan = planned(tiny_model(), "genieblue_skip")
    assert surgery.read_anatomy(base).sizes == plan.anatomy.sizes
    model = surgery.load_adapter(adapter, base=base)
    assert model(tokens()).logits.isfinite().all()
    surgery.export_adapter(adapter, kind("ex"), copy=True)
    assert Path("ex", "manifest.json").is_file()
    Path("talk.txt").write_text("words " * 40)
    (tmp_path / "model").symlink_to(folder / "base")
    with pytest.raises(SurgeryError) as caught:  # the tiny base has no tokenizer
        surgery.evaluate_adapter(adapter, text=kind("talk.txt"))
    assert caught.value.diagnostics[0].code[0] in "DTM"
    plan = surgery.plan_recipe(surgery.load_recipe("lora", {"model": base}), weights=True)
    surgery.save_adapter(plan, surgery.apply_plan(plan, tiny_model()), kind("saved"))
    assert surgery.verify_adapter(kind("saved")).passed


def test_a_folder_of_save_pretrained_names_what_saves_the_plan_too(folder, tmp_path):
    surgery.load_adapter(folder / "ad").save_pretrained(tmp_path / "plain")
    with pytest.raises(SurgeryError, match="`save_adapter`") as caught:
        surgery.load_adapter(tmp_path / "plain")
    assert caught.value.diagnostics[0].code == "A402"


def test_what_is_called_says_nothing_of_its_own_workings(folder, tmp_path, capfd, recwarn):
    model = tiny_model()
    plan = planned(model, "genieblue_skip")
    capfd.readouterr()
    recwarn.clear()
    surgery.load_adapter(str(folder / "ad"))
    surgery.save_adapter(plan, surgery.apply_plan(plan, model), tmp_path / "saved")
    warnings.warn("of the caller's", FutureWarning, stacklevel=1)
    assert [str(entry.message) for entry in recwarn] == ["of the caller's"]
    assert capfd.readouterr().err == ""


def test_quiet_is_over_when_the_last_of_several_leaves():
    before = list(warnings.filters)
    first, second = quiet(), quiet()
    first.__enter__()
    inside = list(warnings.filters)
    second.__enter__()
    first.__exit__(None, None, None)
    assert warnings.filters == inside != before
    second.__exit__(None, None, None)
    assert warnings.filters == before
