"""`surgery verify` as typed: the table, the JSON, the exit codes, and a screen without chatter."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from surgery.cli import main
from surgery.plugins import modules_in

TINY = Path(__file__).parents[2] / "surgery" / "model" / "builtin" / "tiny-qwen2"
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model in a folder of its own."""
    return Path(shutil.copytree(TINY, tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GenieBlue-Skip on it, by the command line."""
    out = tmp_path_factory.mktemp("adapters") / "genieblue"
    words = [sys.executable, "-m", "surgery", "apply", "genieblue_skip"]
    subprocess.run([*words, f"model={base}", "--out", str(out)], check=True, capture_output=True)
    return out


def surgery(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run the command line in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["surgery", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def copy_of(adapter: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(adapter, tmp_path / "spoilt"))


def test_a_sound_adapter_is_verified_and_nothing_chatters(adapter: Path) -> None:
    words = [sys.executable, "-m", "surgery", "verify", str(adapter)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{adapter} (genieblue_skip) on ")
    assert lines[-1] == "Checks: 7 passed: verified."
    steps = [line.rpartition(": ")[0] for line in done.stderr.splitlines()]
    names = [
        m.__name__.rpartition(".")[2].replace("_", " ")
        for m in modules_in("surgery.verification.checks")
    ]
    assert steps == ["start torch", "load", *names]


def test_json_holds_every_check_with_its_numbers(
    adapter: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert surgery(monkeypatch, "verify", str(adapter), "--format", "json") == 0
    document = json.loads(capfd.readouterr().out)
    assert document["format_version"] == "1.0"
    assert document["passed"] is True
    checks = {check["name"]: check for check in document["checks"]}
    assert checks["blocks_executed"]["measured"]["multimodal_blocks"] == 12
    assert set(checks["text_path"]) == {"name", "state", "what", "measured", "seconds"}


def test_a_failed_check_ends_in_exit_code_one(
    adapter: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from surgery.paths.path_state import MULTIMODAL, Switch

    monkeypatch.setattr(Switch, "path", MULTIMODAL)
    assert surgery(monkeypatch, "verify", str(adapter)) == 1
    text = capfd.readouterr().out
    assert "failed" in text
    assert "not verified." in text


@pytest.mark.parametrize(
    ("spoiling", "code"), [("cut", "M204"), ("weights", "M201"), ("plan.json", "A402")]
)
def test_a_broken_folder_ends_in_one_diagnostic(
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    spoiling: str,
    code: str,
) -> None:
    folder = copy_of(adapter, tmp_path)
    if spoiling == "cut":
        (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-8])
    else:
        (folder / (WEIGHTS if spoiling == "weights" else spoiling)).unlink()
    assert surgery(monkeypatch, "verify", str(folder)) == 3
    told = capfd.readouterr().err
    assert f"error[{code}]" in told
    assert "Traceback" not in told


def test_another_base_is_refused(
    adapter: Path,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from safetensors.torch import load_file, save_file

    other = Path(shutil.copytree(base, tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + 1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    assert surgery(monkeypatch, "verify", str(adapter), "--base", str(other)) == 3
    assert "error[A401]" in capfd.readouterr().err
