"""What the environment holds is read only when that was asked for, and written nowhere."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from typer.testing import CliRunner

from surgery.adapter.folder import load_adapter, read_plan, write_adapter
from surgery.cli import build_app
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.plan.planner import plan_recipe
from surgery.recipe.loading import load_recipe
from surgery.sweep.grid import expand, grid_document, plan_points, read_point

SECRET = "wonderful-secret-7"


@pytest.fixture(autouse=True)
def secret(monkeypatch):
    monkeypatch.setenv("SURGERY_TEST_TOKEN", SECRET)
    monkeypatch.setenv("SURGERY_TEST_RANK", "4")


def codes(function, *args, **kwargs):
    with pytest.raises(SurgeryError) as caught:
        function(*args, **kwargs)
    return [diagnostic.code for diagnostic in caught.value.diagnostics]


@pytest.mark.parametrize(
    "argument",
    [
        "description=${oc.env:SURGERY_TEST_TOKEN}",
        "description=x-${oc.env:SURGERY_TEST_TOKEN}-y",
        "description=${oc.env:NOT_SET,default}",
        "description='${oc.select:nothing,${oc.env:SURGERY_TEST_TOKEN}}'",
        "knobs.rank='${oc.decode:${oc.env:SURGERY_TEST_RANK}}'",
        "knobs='${oc.create:{a:${oc.env:SURGERY_TEST_TOKEN}}}'",
    ],
)
def test_without_the_flag_nothing_is_read(argument):
    assert {*codes(load_recipe, "lora", [argument])} == {"R134"}


def test_parents_can_not_read_it_either(tmp_path):
    (tmp_path / "a.yaml").write_text("defaults: ['${oc.env:SURGERY_TEST_TOKEN}', _self_]\n")
    with pytest.raises(SurgeryError) as caught:
        load_recipe(tmp_path / "a.yaml")
    assert SECRET not in str(caught.value)


def test_a_sweep_reads_no_parent_from_it_without_the_flag(tmp_path):
    (tmp_path / "a.yaml").write_text("defaults: ['${oc.env:SURGERY_TEST_TOKEN}', _self_]\n")
    words = ["sweep", str(tmp_path / "a.yaml"), "rank=4,8"]
    assert SECRET not in str(CliRunner().invoke(build_app(), words).exception)


@pytest.mark.parametrize(
    "text",
    [
        "defaults: ['${oc.env:SURGERY_TEST_TOKEN}', _self_]",
        "defaults: [lora, _self_]\nseed: ${oc.env:SURGERY_TEST_TOKEN}",
        "defaults: [lora, _self_]\nknobs: {a: '${oc.create:{b:${oc.env:SURGERY_TEST_TOKEN}}}'}",
        "defaults: [lora, _self_]\nallow: ['x${oc.env:SURGERY_TEST_TOKEN}']",
    ],
)
@pytest.mark.parametrize("command", ["plan", "lint", "sweep"])
def test_no_error_tells_what_the_flag_let_it_read(command, text, tmp_path, capfd):
    (tmp_path / "a.yaml").write_text(f"{text}\n")
    words = [command, str(tmp_path / "a.yaml"), "--allow-env"]
    words += ["--out", str(tmp_path / "out"), *(["--format", "json"] if command == "lint" else [])]
    result = CliRunner().invoke(build_app(), words)
    assert result.exception
    written = (tmp_path / "out").read_text() if (tmp_path / "out").is_file() else ""
    for printed in (str(result.exception), result.output, written, *capfd.readouterr()):
        assert SECRET not in printed


def test_the_resolver_is_omegaconfs_own_again_afterwards():
    load_recipe("lora")
    codes(load_recipe, "lora", ["description=${oc.env:SURGERY_TEST_TOKEN}"])
    config = OmegaConf.create({"a": "${oc.env:SURGERY_TEST_TOKEN}"})
    assert config.a == SECRET


WORDS = [
    "description=by ${oc.env:SURGERY_TEST_TOKEN}",
    "knobs.mine=${oc.env:SURGERY_TEST_TOKEN}",
    "knobs.rank='${oc.decode:${oc.env:SURGERY_TEST_RANK}}'",
]


def test_with_the_flag_text_is_used_and_never_written(tmp_path):
    recipe = load_recipe("lora", WORDS, allow_env=True)
    assert recipe.description == f"by {SECRET}"
    assert recipe.operations["adapters"].rank == 4
    write_adapter(plan_recipe(recipe, weights=True), tmp_path / "a")
    for file in (tmp_path / "a").iterdir():
        assert SECRET.encode() not in file.read_bytes(), file.name
    document = json.loads((tmp_path / "a" / "plan.json").read_bytes())
    assert document["recipe"]["description"] == "by ${oc.env:SURGERY_TEST_TOKEN}"
    assert document["recipe"]["knobs"]["rank"] == 4
    read_plan(tmp_path / "a")
    load_adapter(tmp_path / "a")


def test_a_sweep_hands_the_text_on_and_its_jobs_read_it_again(tmp_path):
    points = expand(["lora"], WORDS)
    plans = plan_points(points, allow_env=True)
    text = grid_document(points, plans, "plan", allow_env=True)
    assert SECRET not in text
    (tmp_path / "points.json").write_text(text)
    _, recipe, _ = read_point(tmp_path / "points.json", 0)
    assert recipe.description == f"by {SECRET}"
    assert SECRET not in json.dumps(recipe.resolved())


def test_what_the_trainer_would_write_is_refused():
    argument = "stages={a: {data: x.jsonl, trainer: {run_name: '${oc.env:SURGERY_TEST_TOKEN}'}}}"
    assert codes(load_recipe, "lora", [argument], allow_env=True) == ["R134"]


def test_where_an_interpolation_can_not_stand_it_is_refused(monkeypatch):
    monkeypatch.setenv("SURGERY_TEST_PRECISION", "bf16")
    argument = "stages={a: {data: x.jsonl, precision: '${oc.env:SURGERY_TEST_PRECISION}'}}"
    assert codes(load_recipe, "lora", [argument], allow_env=True) == ["R134"]


def test_what_a_stage_trains_is_written_as_the_plan_shows_it(monkeypatch):
    monkeypatch.setenv("SURGERY_TEST_TRAINED", "adapters")
    argument = "stages={a: {data: x.jsonl, train: ['${oc.env:SURGERY_TEST_TRAINED}']}}"
    recipe = load_recipe("lora", [argument], allow_env=True)
    assert recipe.resolved()["stages"]["a"]["train"] == ["adapters"]


@pytest.mark.parametrize(
    "argument",
    [
        "stages={a: {data: x.jsonl, trainer: {hub_token: abc}}}",
        "model='https://me:pass@example.org/x'",
        "description='hf_abcdefghijklmnopqrstuvwxyzABCDEFGH'",
    ],
)
def test_a_password_or_a_token_in_a_recipe_is_refused(argument):
    assert codes(load_recipe, "lora", [argument]) == ["R135"]


@pytest.mark.parametrize("command", ["plan", "apply", "train", "lint", "assemble", "sweep"])
def test_every_command_that_takes_a_recipe_has_the_flag(command):
    result = CliRunner().invoke(build_app(), [command, "--help"])
    assert "--allow-env" in result.output


def test_the_command_reads_it_with_the_flag_alone(tmp_path: Path):
    words = ["plan", "lora", WORDS[0], "--out", str(tmp_path / "plan.json")]
    assert CliRunner().invoke(build_app(), words).exception
    result = CliRunner().invoke(build_app(), [*words, "--allow-env"])
    assert result.exit_code == 0
    assert SECRET not in (tmp_path / "plan.json").read_text()
