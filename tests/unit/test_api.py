"""The functions of `surgery` as a Python package: paths as text, options by name, no chatter."""

import inspect
import pickle
import subprocess
import sys
import traceback
import typing
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import perturbed, planned, save_tiny, tiny_model, tokens

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


@pytest.mark.parametrize("recipe", ["genieblue_skip", "lora", "cogvlm_post"])
def test_save_pretrained_writes_what_load_adapter_opens(folder, tmp_path, recipe):
    plan = surgery.plan_recipe(recipe, model=folder / "base", rank=2)
    model = surgery.apply_plan(plan)
    perturbed(model)
    for _ in range(2):
        model.save_pretrained(tmp_path / "saved")
    opened = surgery.load_adapter(tmp_path / "saved")
    assert surgery.verify_adapter(tmp_path / "saved").passed
    for own, read in zip(model.parameters(), opened.parameters(), strict=True):
        assert torch.equal(own, read)
    surgery.save_adapter(plan, model, tmp_path / "ours")
    names = {file.name for file in (tmp_path / "ours").iterdir()}
    assert {file.name for file in (tmp_path / "saved").iterdir()} == names
    for name in names - {"README.md"}:
        assert (tmp_path / "saved" / name).read_bytes() == (tmp_path / "ours" / name).read_bytes()


def test_paths_are_methods_of_a_model_too(folder):
    model = surgery.load_adapter(folder / "ad")
    with torch.no_grad(), model.text_path(), model.multimodal_path():
        multimodal = model(tokens()).logits
        with surgery.text_path(model):
            text = model(tokens()).logits
        with model.text_path():
            assert torch.equal(model(tokens()).logits, text)
    assert torch.equal(multimodal, model(tokens()).logits.detach())


def test_a_base_that_is_on_no_disk_is_asked_for(tmp_path):
    with pytest.raises(ValueError, match="in memory"):
        surgery.apply_plan(planned(tiny_model(), "lora"))
    with pytest.raises(ValueError, match="write_assembled"):
        surgery.apply_plan(surgery.plan_recipe("sighted", weights=True))


def test_a_folder_of_plain_peft_names_what_saves_the_plan_too(folder, tmp_path):
    surgery.load_adapter(folder / "ad").save_weights(tmp_path / "plain")
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


def test_every_public_name_is_listed_once_and_says_what_it_is():
    assert dir(surgery) == sorted(surgery.__all__)
    for name in surgery.__all__:
        thing = getattr(surgery, name)
        assert isinstance(thing, str) or inspect.getdoc(thing), name
    with pytest.raises(AttributeError, match="load_adaptor"):
        _ = surgery.load_adaptor


def test_an_error_bears_the_name_that_it_is_imported_by_and_is_pickled():
    error = SurgeryError(surgery.Diagnostic("R101", "wrong"))
    assert traceback.format_exception_only(error)[0].startswith("surgery.SurgeryError: error[R101]")
    assert pickle.loads(pickle.dumps(error)).diagnostics == error.diagnostics


def test_importing_the_package_is_cheap():
    code = "import sys, time; t = time.process_time(); import surgery"
    code += "; print(time.process_time() - t, *({'torch', 'numpy', 'pydantic'} & set(sys.modules)))"
    runs = [[sys.executable, "-c", code]] * 3
    told = [subprocess.run(run, capture_output=True, check=True).stdout for run in runs]
    assert min(map(float, told)) < 0.05  # what is loaded besides would be no number


def test_overrides_are_keywords_of_a_recipe_by_its_name():
    recipe = surgery.load_recipe("lora", {"model": "builtin/tiny-qwen2", "rank": 4})
    plan = surgery.plan_recipe("lora", model="builtin/tiny-qwen2", rank=4)
    assert plan.recipe == recipe == surgery.plan_recipe(recipe).recipe
    assert surgery.load_recipe("lora", None) == surgery.load_recipe("lora")
    with pytest.raises(TypeError, match="a composed Recipe"):
        surgery.plan_recipe(recipe, rank=8)
    with pytest.raises(SurgeryError, match="R109"):
        surgery.plan_recipe("lora", rnk=4)


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
