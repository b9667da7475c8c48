"""`surgery train` as a user runs it: killed and resumed, on two processes; and users' own loops.

Each run is a process of its own, started and killed as a shell would.
"""

import ast
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_llava import color_question, write_images, write_lines
from typer.testing import CliRunner

from surgery.adapter.folder import load_adapter
from surgery.cli import build_app
from surgery.diagnostics.distribution import own_version

ROOT = Path(__file__).parents[2]
LOOPS = ROOT / "docs" / "how-to" / "loops"
BINARIES = Path(sys.executable).parent
FEW = ("batch=4", "length=96", "steps=6", "rate=1e-3", "log_every=1", "save_every=2")
WEIGHTS = "adapter_model.safetensors"
MOST_DIFFERENCE = 1e-3


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions and answers of different lengths."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": "What is this? " + "lambda " * (n % 7)},
                {"role": "assistant", "content": "A function without a name. " * (1 + n % 3)},
            ]
        }
        for n in range(17)
    ]
    return write_lines(tmp_path_factory.mktemp("data") / "talk.jsonl", rows)


def run(*words: object, launcher: tuple[object, ...] = (sys.executable,), **more: str) -> Any:
    threads = {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests"))),
    }
    command = [*map(str, launcher), *map(str, words)]
    return subprocess.Popen(
        command,
        env={**os.environ, **threads, **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def done(process: Any, code: int = 0) -> str:
    text, _ = process.communicate(timeout=300)
    assert process.returncode == code, text
    return str(text)


def losses(folder: Path) -> list[float]:
    with (folder / "log.csv").open() as stream:
        return [float(row["loss"]) for row in csv.DictReader(stream)]


def seen_by_tensorboard(folder: Path) -> list[float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = folder.glob("runs/*/*/events*")
    read = EventAccumulator(str(events)).Reload()
    return [point.value for point in read.Scalars("train/loss")]


def test_killed_and_resumed_is_the_same_to_the_byte(talk: Path, tmp_path: Path) -> None:
    words = ("-m", "surgery", "train", "genieblue_skip", f"data={talk}", *FEW, "save_every=1")
    words = (*words, "operations.adapters.peft.lora_dropout=0.1", "steps=12")
    done(run(*words, "--out", tmp_path / "a"))
    process = run(*words, "--out", tmp_path / "b")
    stage = tmp_path / "b.training" / "train"
    while process.poll() is None and len(list(stage.glob("checkpoint-*/complete"))) < 2:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "b").exists()
    said = done(run(*words, "--out", tmp_path / "b"), code=2)
    assert "T106" in said
    done(run(*words, "--out", tmp_path / "b", "--resume"))
    for name in (WEIGHTS, "plan.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert seen_by_tensorboard(tmp_path / "a") == pytest.approx(losses(tmp_path / "a"))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_processes_with_fsdp_train_as_one(launcher: str, talk: Path, tmp_path: Path) -> None:
    words = ("-m", "surgery", "train", "genieblue_skip", f"data={talk}", *FEW)
    done(run(*words, "--out", tmp_path / "one"))
    two = {
        "torchrun": (BINARIES / "torchrun", "--nproc-per-node", 2, "--standalone"),
        "accelerate": (
            BINARIES / "accelerate",
            "launch",
            "--num_processes",
            2,
            "--num_machines",
            1,
            "--mixed_precision",
            "no",
            "--dynamo_backend",
            "no",
            "--main_process_port",
            0,  # a free one
            "--use_fsdp",
            "--fsdp_version",
            2,
        ),
    }[launcher]
    done(run(*words, "--out", tmp_path / "two", launcher=two, ACCELERATE_USE_FSDP="true"))
    one, both = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(one) == len(both) == 6
    assert max(abs(a - b) for a, b in zip(one, both, strict=True)) < MOST_DIFFERENCE
    first, second = (load_file(tmp_path / name / WEIGHTS) for name in ("one", "two"))
    assert first.keys() == second.keys()
    # the base is bf16, and so are the copies once they are saved
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-2, atol=1e-3)
    model: Any = load_adapter(tmp_path / "two")
    assert torch.isfinite(model(input_ids=torch.tensor([[1, 5, 6]])).logits).all()


KILLER = """\
import os, sys
from pathlib import Path
from transformers import TrainerCallback
from surgery.recipe.loading import load_recipe
from surgery.training.train import train_recipe

class Kill(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 3 and "kill" in sys.argv[1]:
            os._exit(9)

recipe = load_recipe("genieblue_skip", sys.argv[3:])
how = {"resume": "resume" in sys.argv[1]}
train_recipe(recipe, Path(sys.argv[2]), callbacks=[Kill()], **how)
"""


@pytest.mark.slow
def test_sharded_training_resumes(talk: Path, tmp_path: Path) -> None:
    script = tmp_path / "killer.py"
    script.write_text(KILLER)
    two = (BINARIES / "torchrun", "--nproc-per-node", 2, "--standalone")
    sharded = {"launcher": two, "ACCELERATE_USE_FSDP": "true"}
    words = (f"data={talk}", *FEW)
    done(run(script, "whole", tmp_path / "a", *words, **sharded))
    run(script, "kill", tmp_path / "b", *words, **sharded).communicate()
    assert (tmp_path / "b.training" / "train" / "checkpoint-2" / "complete").exists()
    done(run(script, "resume", tmp_path / "b", *words, **sharded))
    first, second = (load_file(tmp_path / name / WEIGHTS) for name in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_assembled_model_is_trained_and_trained_on(tmp_path: Path) -> None:
    names = write_images(tmp_path)
    records = [color_question(name.partition(".")[0]) for name in names]
    data = f"data={write_lines(tmp_path / 'sight.jsonl', records)}"
    few = ("batch=3", "length=512", "steps=4", "rate=3e-3", "log_every=1")
    words = ("-m", "surgery", "train", "genieblue_skip", "vision=builtin/tiny-vit", data, *few)
    done(run(*words, "--out", tmp_path / "a"))
    first, *_, last = losses(tmp_path / "a")
    assert last < first
    card = (tmp_path / "a" / "README.md").read_text()
    row = "| train | copies, adapters, vision, projector | `sight.jsonl` | 4 | 3 | 0.003 | "
    assert f"{row}{first:.4f} to {last:.4f} |" in card
    assert f"surgery {own_version()}, torch {torch.__version__}" in card
    assert 'load_adapter("FOLDER")' in card
    done(run("-m", "surgery", "train", tmp_path / "a", data, *few, "--out", tmp_path / "b"))
    assert losses(tmp_path / "b")[0] < losses(tmp_path / "a")[0]
    said = done(
        run(
            "-m",
            "surgery",
            "train",
            tmp_path / "a",
            data,
            "operations.adapters.rank=4",
            "--out",
            tmp_path / "c",
        ),
        code=2,
    )
    assert "T109" in said
    assert not (tmp_path / "c.training").exists()


def test_training_is_told_to_machines_and_in_the_card(
    talk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    broken = [*talk.read_text().splitlines()[:5], '{"text": 3}']
    Path("talk.jsonl").write_text("\n".join(broken))
    few = ("data=talk.jsonl", "bad_records=skip", "batch=2", "steps=3", "length=64", "log_every=1")
    words = ["train", "lora", *few, "--out", "mine", "--format", "json"]
    run = CliRunner().invoke(build_app(), words, catch_exceptions=False)
    document = json.loads(run.stdout)
    (stage,) = document["stages"]
    assert (document["folder"], document["surgery"]) == ("mine", own_version())
    assert (stage["name"], stage["steps"], stage["skipped"]) == ("train", 3, 1)
    assert stage["losses"] == [losses(Path("mine"))[0], losses(Path("mine"))[-1]]
    assert "talk.jsonl" in str(stage["diagnostics"][0])
    assert "(1 bad records left out) | 3 | 2 |" in Path("mine/README.md").read_text()


@pytest.mark.parametrize("script", sorted(LOOPS.glob("*.py")), ids=lambda path: path.stem)
def test_own_loop_without_a_folder_says_how_to_run_it(script: Path) -> None:
    """Before anything is planned or trained."""
    statements = ast.parse(script.read_text()).body[1:]
    first = next(s for s in statements if not isinstance(s, (ast.Import, ast.ImportFrom)))
    asks = "if len(sys.argv) != 2 or sys.argv[1].startswith('-'):\n    sys.exit(__doc__)"
    assert ast.unparse(first) == asks
    assert f"python {script.name} OUT" in (ast.get_docstring(ast.parse(script.read_text())) or "")


@pytest.mark.parametrize("script", sorted(LOOPS.glob("*.py")), ids=lambda path: path.stem)
def test_own_loop_runs(script: Path, tmp_path: Path) -> None:
    done(run(script, tmp_path / "a"))
    tensors = load_file(tmp_path / "a" / WEIGHTS)
    assert any(t.any() for name, t in tensors.items() if "lora_B" in name)
    assert load_adapter(tmp_path / "a") is not None
