"""`surgery sweep`, by every launcher that is installed, and as a Hydra app."""

from __future__ import annotations

import csv
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import surgery.training.train
from surgery.adapter.folder import write_adapter
from surgery.cli import build_app
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.model.source import BUILTIN_FOLDER
from surgery.plan.planner import plan_recipe
from surgery.recipe.loading import load_recipe
from surgery.sweep import jobs
from surgery.sweep.hydra_launcher import read_settings
from surgery.sweep.jobs import JOBS

TINY = BUILTIN_FOLDER / "tiny-qwen2"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sweep(*words: str) -> Result:
    return CliRunner().invoke(build_app(), ["sweep", *words], catch_exceptions=True)


def refusal(*words: str) -> SurgeryError:
    error = sweep(*words).exception
    assert isinstance(error, SurgeryError)
    return error


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return started([sys.executable, "-m", *words])


def started(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, check=False)


def results(folder: str) -> list[dict[str, Any]]:
    return list(json.loads(Path(folder, "results.json").read_text())["results"])


def test_plan_job_writes_plans_and_tables() -> None:
    done = sweep("genieblue_skip", "placement=pre,skip", "rank=4,8", "--out", "grid")
    assert done.exit_code == 0, done.output
    assert "genieblue_skip  placement=skip rank=8" in done.stdout
    assert "[4/4]" in done.stderr
    found = results("grid")
    assert [result["status"] for result in found] == ["done"] * 4
    assert [result["knobs"]["rank"] for result in found] == [4, 8, 4, 8]
    assert found[0]["parameters"]["added"] < found[1]["parameters"]["added"]
    rows = list(csv.DictReader(Path("grid/results.csv").read_text().splitlines()))
    assert [row["knobs.placement"] for row in rows] == ["pre", "pre", "skip", "skip"]
    plan = json.loads(Path("grid/3/plan.json").read_text())
    assert plan["parameters"] == found[3]["parameters"]
    assert not list(Path("grid").rglob(".hydra")) + list(Path("grid").rglob("*.log"))


def test_default_folder_is_hydras_and_torch_stays_out() -> None:
    code = (
        "import sys; from surgery.cli import main\n"
        "try: main()\nfinally: assert 'torch' not in sys.modules"
    )
    words = ["sweep", "lora", "rank=4", "--format", "json"]
    done = started([sys.executable, "-c", code, *words])
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert [result["recipe"] for result in document["results"]] == ["lora"]
    assert Path(document["folder"]).parents[1] == Path("multirun").absolute()
    assert "HYDRA" not in done.stderr


def test_recipes_are_an_axis_and_a_missing_knob_is_marked() -> None:
    done = sweep("recipe=genieblue_skip,lora,full_finetune", "placement=pre,post", "--out", "grid")
    assert done.exit_code == 0, done.output
    assert [result["recipe"] for result in results("grid")] == [
        "genieblue_skip",
        "genieblue_skip",
        "lora",
        "full_finetune",
    ]
    assert done.stdout.count("(no knob `placement`)") == 2


def test_apply_by_joblib_writes_what_was_planned() -> None:
    words = ["recipe=lora,full_finetune", "rank=2,4", "--job", "apply", "--out", "a=b, c"]
    done = sweep(*words, "--launcher", "joblib", "hydra.launcher.n_jobs=2")
    assert done.exit_code == 0, done.output
    for result in results("a=b, c"):
        folder = Path(result["folder"], "adapter")
        written = sum(file.stat().st_size for file in folder.iterdir())
        assert written == result["bytes"]["written"]


def test_submitit_local_runs_both_points() -> None:
    done = sweep("lora", "rank=2,4", "--launcher", "submitit_local", "--out", "grid")
    assert done.exit_code == 0, done.output
    assert [result["status"] for result in results("grid")] == ["done", "done"]


def test_what_a_launchers_processes_write_goes_into_its_log(capfd) -> None:
    for launcher in ("basic", "joblib"):
        settings = replace(read_settings(()), launcher=launcher)
        with jobs._stderr_to(Path("launcher.log"), settings):
            print("ours", file=sys.stderr)
            subprocess.run([sys.executable, "-c", "import sys; sys.exit('theirs')"], check=False)
        print("after", file=sys.stderr)
        said = capfd.readouterr().err.split()
        assert said == ["ours", *(["theirs"] if launcher == "basic" else []), "after"]
    assert Path("launcher.log").read_text() == "theirs\n"


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_failed_job_is_shown_and_the_others_go_on(launcher: str) -> None:
    Path("grid/1/adapter").mkdir(parents=True)
    Path("grid/1/adapter/mine.txt").touch()
    done = sweep("lora", "rank=2,4,8", "--job", "apply", "--out", "grid", "--launcher", launcher)
    assert done.exit_code == 1, done.output
    found = results("grid")
    assert [result["status"] for result in found] == ["done", "failed", "done"]
    assert found[1]["diagnostics"][0]["code"] == "A301"
    assert "1 failed" in done.stdout
    assert Path("grid/1/adapter/mine.txt").exists()


def test_model_that_is_gone_when_its_job_runs_fails_that_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("first", "second"):
        shutil.copytree(TINY, f"models/{name}")
    launch: Callable[..., str] = jobs.run_points

    def removed_before(*arguments: Any) -> str:
        shutil.rmtree("models/first")
        return launch(*arguments)

    monkeypatch.setattr(jobs, "run_points", removed_before)
    done = sweep("lora", "model=./models/first,./models/second", "--out", "grid")
    assert done.exit_code == 1, done.output
    assert [result["status"] for result in results("grid")] == ["failed", "done"]
    assert "failed: there is no model" in " ".join(done.stdout.split())


def test_job_that_crashes_or_leaves_no_result_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(plan: Any, folder: Path) -> dict[str, Any]:
        if folder.name == "0":
            raise ZeroDivisionError("by nought")
        raise SystemExit(3)

    monkeypatch.setitem(jobs.JOBS, "plan", jobs.Job(crash))
    monkeypatch.setattr(jobs, "start_hydra", without_exit(jobs.start_hydra))
    done = sweep("lora", "rank=2,4", "--out", "grid")
    assert done.exit_code == 1, done.output
    said = [result["diagnostics"][0]["what"] for result in results("grid")]
    assert said[0] == "the job crashed: ZeroDivisionError: by nought"
    assert said[1].startswith("the job left no result: RuntimeError")


def without_exit(start: Callable[..., None]) -> Callable[..., None]:
    """What a launcher does whose worker process dies: it raises an error of its own."""

    def wrapped(arguments: Any) -> None:
        try:
            start(arguments)
        except SystemExit as error:
            raise RuntimeError("a worker died") from error

    return wrapped


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["lora", "rank=4,0"], "R103"),
        (["lora", "model=builtin/qwen2.5-3b", "--job", "apply"], "M102"),
        (["lora", "--launcher", "jolib"], "R118"),
        (["lora", "--job", "aply"], "R118"),
        (["lora", "hydra.launcher.n_jobs=2"], "R118"),
        (["lora", "hydra/sweeper=optuna"], "R118"),
        (["lora", "hydra.sweep.dir=["], "R118"),
        (["lora", "hydra.sweep.subdir=../base"], "R118"),
        (["lora", "hydra.sweep.subdir=a/${point}"], "R118"),
        (["lora", "hydra.output_subdir=../../base"], "R118"),
        (["lora", "hydra.output_subdir=/base"], "R118"),
        (["lora", "hydra.callbacks.x._target_=os.system"], "R108"),
        ([], "R112"),
    ],
)
def test_one_fault_prevents_all(words: list[str], code: str) -> None:
    error = refusal(*words, "--out", "grid")
    assert error.diagnostics[0].code == code
    assert error.exit_code == (3 if code[0] in "AM" else 2)
    assert not Path("grid").exists()


def test_settings_that_would_import_other_code_are_refused(tmp_path: Path) -> None:
    (tmp_path / "hydra" / "launcher").mkdir(parents=True)
    (tmp_path / "hydra" / "launcher" / "mine.yaml").write_text("_target_: os.system\n")
    search = f"hydra.searchpath=[file://{tmp_path}]"
    assert refusal("lora", search, "hydra/launcher=mine").diagnostics[0].code == "R108"


def test_missing_launcher_names_the_command_that_installs_it() -> None:
    if find_spec("hydra_plugins.hydra_ray_launcher"):
        pytest.skip("the launcher that tests take for missing is installed")
    error = refusal("lora", "--launcher", "ray")
    assert error.exit_code == 3
    assert "pip install 'model-surgery[ray]'" in str(error)


def test_folder_of_a_sweep_is_not_written_over() -> None:
    assert sweep("lora", "--out", "grid").exit_code == 0
    assert refusal("lora", "--out", "grid").diagnostics[0].code == "A301"
    Path("other").mkdir()
    Path("other/0").touch()
    assert refusal("lora", "--out", "other").diagnostics[0].code == "A301"


@pytest.mark.parametrize("flag", ["--cfg=job", "--info", "--shell-completion"])
def test_flags_of_hydra_are_refused_by_the_command(flag: str) -> None:
    done = sweep("lora", flag)
    assert done.exit_code == 2
    assert "No such option" in done.output


def test_multirun_flag_is_harmless() -> None:
    assert sweep("-m", "lora", "-m", "rank=2,4", "--out", "grid").exit_code == 0


def test_hydra_app_sweeps_with_hydras_own_records() -> None:
    words = ["-m", "-m", "recipe=genieblue_skip,lora", "rank=4", "hydra.sweep.dir=grid"]
    done = run("surgery.sweep", *words)
    assert done.returncode == 0, done.stderr
    assert "[HYDRA] Launching 2 jobs locally" in done.stdout
    assert Path("grid/1/.hydra/config.yaml").exists()
    assert Path("grid/1/sweep.log").exists()
    assert [result["recipe"] for result in results("grid")] == ["genieblue_skip", "lora"]


def test_hydra_app_runs_one_point_without_multirun() -> None:
    assert run("surgery.sweep", "recipe=lora", "rank=4", "hydra.run.dir=one").returncode == 0
    assert len(results("one")) == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--help"], "recipe: cogvlm_full, cogvlm_post"),
        (["--cfg", "job", "recipe=lora", "rank=4"], "rank: 4"),
        (["-m", "--cfg", "job"], "error[R118]"),
        (["recipe=lora", "rank=4,8"], "add -m"),
        (["--experimental-rerun", "x.pkl"], "error[R118]"),
    ],
)
def test_hydra_app_answers_hydras_flags(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from surgery.cli.commands.sweep import hydra_app

    monkeypatch.setattr(sys, "argv", ["surgery.sweep", *words])
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    with pytest.raises(SystemExit) as end:
        hydra_app()
    assert (root.handlers, root.level) == (handlers, level)
    heard = capfd.readouterr()
    assert said in heard.out + heard.err
    assert "Traceback" not in heard.err
    assert end.value.code == (2 if "R118" in said or "-m" in said else 0)


def test_interrupt_ends_with_130_and_no_traceback() -> None:
    words = ["sweep", "lora", "rank=range(1,41)", "seed=0,1,2,3", "--job", "apply", "--out", "grid"]
    process = subprocess.Popen(
        [sys.executable, "-m", "surgery", *words],
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not Path("grid/0/result.json").exists():
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130
    assert "stopped after" in said
    assert "Traceback" not in said


# --- a sweep that was killed ----------------------------------------------------------------------


def killed_at(point: int, moment: Callable[[Path], None]) -> Callable[[Any, Path], Any]:
    """A job that is killed at one point, having left there what the moment makes of its folder."""
    apply = JOBS["apply"].run

    def run(plan: Any, folder: Path) -> dict[str, Any]:
        if folder.name == str(point):
            moment(folder)
            os.kill(os.getpid(), signal.SIGKILL)
        return apply(plan, folder)

    return run


def swept_until(moment: Callable[[Path], None], *words: str) -> None:
    """Sweep in a process of its own, which ends by SIGKILL at point 1."""
    process = os.fork()
    if not process:
        job = replace(JOBS["apply"], run=killed_at(1, moment))
        jobs.JOBS["apply"] = job
        sweep(*words)
        os._exit(1)
    assert os.waitpid(process, 0)[1] == signal.SIGKILL


def half_written(folder: Path) -> None:
    (folder / ".adapter.partial").mkdir()
    (folder / ".adapter.lock").touch()


def whole(folder: Path) -> None:
    write_adapter(plan_recipe(load_recipe("lora", ["rank=4"]), weights=True), folder / "adapter")


@pytest.mark.parametrize("moment", [lambda folder: None, half_written, whole])
def test_killed_sweep_goes_on_and_keeps_what_is_done(moment: Callable[[Path], None]) -> None:
    words = ("lora", "rank=2,4,8", "--job", "apply", "--out", "grid")
    swept_until(moment, *words)
    before = Path("grid/0/result.json").read_bytes()
    assert refusal(*words).diagnostics[0].code == "A301"
    for other in (("rank=2,4,9",), ("rank=2,4,8", "--job", "plan"), ("rank=2,4,8", "seed=1")):
        asked = ("lora", "--job", "apply", "--out", "grid", *other)
        assert refusal(*asked, "--resume").diagnostics[0].code == "T107"
    done = sweep(*words, "--resume")
    assert done.exit_code == 0, done.output
    assert [result["knobs"]["rank"] for result in results("grid")] == [2, 4, 8]
    assert [result["status"] for result in results("grid")] == ["done"] * 3
    assert Path("grid/0/result.json").read_bytes() == before
    assert sorted(os.listdir("grid/1")) == ["adapter", "result.json"]
    assert sorted(os.listdir(".")) == ["grid"]
    assert sweep(*words, "--resume").exit_code == 0


def test_failed_points_are_tried_again() -> None:
    Path("grid/1/adapter").mkdir(parents=True)
    Path("grid/1/adapter/mine.txt").touch()
    words = ("lora", "rank=2,4", "--job", "apply", "--out", "grid")
    assert sweep(*words).exit_code == 1
    assert sweep(*words, "--resume").exit_code == 1
    shutil.rmtree("grid/1/adapter")
    assert sweep(*words, "--resume").exit_code == 0
    assert [result["status"] for result in results("grid")] == ["done", "done"]


def test_killed_sweep_of_trainings_goes_on_at_a_checkpoint() -> None:
    record = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    Path("talk.jsonl").write_text(f"{json.dumps(record)}\n" * 4)
    stage = "+stages.tune={data:talk.jsonl,steps:2,batch:1,length:64,save_every:1}"
    words = ("lora", "rank=2,4", stage, "--job", "train", "--out", "grid")
    process = os.fork()
    if not process:
        load = surgery.training.train.load_trained
        surgery.training.train.load_trained = lambda *given: (
            os.kill(os.getpid(), signal.SIGKILL) if "/1/" in str(given[1]) else load(*given)
        )
        sweep(*words)
        os._exit(1)
    assert os.waitpid(process, 0)[1] == signal.SIGKILL
    assert Path("grid/1/adapter.training/tune/trained.safetensors").exists()
    checkpoint = Path("grid/1/adapter.training/tune/checkpoint-2/complete").stat().st_mtime_ns
    done = sweep(*words, "--resume")
    assert done.exit_code == 0, done.output
    assert [result["stages"]["tune"]["steps"] for result in results("grid")] == [2, 2]
    assert Path("grid/1/adapter/log.csv").stat().st_mtime_ns > checkpoint
    assert sorted(os.listdir("grid/1")) == ["adapter", "result.json"]


def test_resume_begins_a_sweep_that_was_ended_before_its_folder() -> None:
    done = sweep("lora", "rank=2,4", "--out", "grid", "--resume")
    assert done.exit_code == 0, done.output
    assert "note[T107]: there is no sweep to resume" in done.stderr
    assert [result["status"] for result in results("grid")] == ["done"] * 2


def test_resume_wants_the_folder_of_a_sweep() -> None:
    done = sweep("lora", "rank=2,4", "--resume")
    assert done.exit_code == 2
    assert "give its --out" in done.stderr
    assert not Path("multirun").exists()


def test_sweep_of_trainings_may_run_the_code_of_its_models(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []

    def train(*_: Any, trust_remote_code: bool, **__: Any) -> None:
        told.append(trust_remote_code)

    monkeypatch.setattr(surgery.training.train, "train_recipe", train)
    monkeypatch.setattr(jobs, "_trained", lambda folder: {})
    stage = "+stages.tune={data:talk.jsonl}"
    for flag in ([], ["--trust-remote-code"]):
        sweep("lora", "rank=2", stage, "--job", "train", "--out", f"grid{len(flag)}", *flag)
    assert told == [False, True]


def test_sweep_of_trainings_takes_bare_keys_and_shows_the_loss(capfd) -> None:
    Path("talk.jsonl").write_text(f"{json.dumps({'text': 'Bananas are yellow. ' * 8})}\n" * 4)
    words = (
        "data=talk.jsonl",
        "steps=1",
        "batch=2",
        "length=32",
        "--job",
        "train",
        "--out",
        "grid",
    )
    done = sweep("lora", "rank=2,4", *words)
    assert done.exit_code == 0, done.output
    losses = [result["loss"] for result in results("grid")]
    assert losses == [result["stages"]["train"]["loss"] for result in results("grid")]
    assert all(5 < loss < 10 for loss in losses)  # nats per token of 2,048
    with Path("grid/results.csv").open(newline="") as file:
        assert [float(row["loss"]) for row in csv.DictReader(file)] == losses
    assert all(f"{loss:.4f}" in done.output for loss in losses)
    assert "Warning" not in done.output + capfd.readouterr().err
