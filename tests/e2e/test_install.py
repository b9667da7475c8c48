"""The wheel, installed in a fresh environment and used from an empty folder."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.install
WHERE = "import importlib.util as u; print(u.find_spec('surgery').origin)"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    words = ["wheel", str(ROOT), "--no-deps", "--quiet", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    return next(folder.glob("model_surgery-*.whl"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment that holds the wheel, and sees this one's packages but for `surgery`."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(folder, symlinks=True)
    own = next(folder.glob("lib/python*/site-packages"))
    words = ["install", "--no-deps", "--quiet", "--target", str(own), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    (own / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


@pytest.fixture
def run(environment: Path, tmp_path: Path) -> Any:
    """Run Python in the fresh environment and an empty folder; return what it prints."""

    def run(*words: str) -> str:
        shell = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        words = (str(environment / "bin" / "python"), *words)
        done = subprocess.run(
            words, cwd=tmp_path, env=shell, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_wheel_runs_from_an_empty_folder(run: Any, environment: Path, tmp_path: Path) -> None:
    assert Path(run("-c", WHERE).strip()).is_relative_to(environment)
    assert "genieblue_skip" in run("-m", "surgery", "recipes", "list")
    assert "next: surgery verify" in run("-m", "surgery", "apply", "recipes/genieblue_skip.yaml")
    assert (tmp_path / "adapters" / "genieblue_skip" / "adapter_model.safetensors").exists()
    plan = run("-m", "surgery", "plan", "genieblue_skip", "--format", "json")
    document = json.loads(plan)
    assert document["model"]["source"] == "builtin/tiny-qwen2"
    assert document["parameters"]["added"] > 0


def test_wheel_holds_every_recipe_model_and_page(run: Any) -> None:
    listed = run("-m", "surgery", "recipes", "list")
    recipes = {file.stem for file in (ROOT / "recipes").glob("*.yaml")} - {"base"}
    assert all(name in listed for name in recipes)
    names = "from surgery.model.source import *; print(*builtin_names(), *builtin_towers())"
    folders = (ROOT / "surgery" / "model" / "builtin").glob("*/config.json")
    found = sorted(run("-c", names).split())
    assert found == sorted(f"builtin/{file.parent.name}" for file in folders)
    assert "P206" in run("-m", "surgery", "explain", "all")
