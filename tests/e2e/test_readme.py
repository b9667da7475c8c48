"""Every command of the README runs, and what it shows is what it prints."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```console\n(.*?)```", README, re.DOTALL)


def _commands() -> list[tuple[str, str]]:
    """Each command with the output that is shown under it."""
    found = []
    for block in BLOCKS:
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            found.append((command.split("  #")[0].strip(), shown))
    return found


SURGERY = [entry for entry in _commands() if entry[0].startswith("surgery")]
APPLY = "apply genieblue_skip --out my-adapter"
EXPORT = "export my-adapter --to hf --out my-export"
BEFORE = {"verify": [APPLY], "export": [APPLY], "run": [APPLY, EXPORT]}
MAKE = [command for command, _ in _commands() if command.startswith("make")]


def _run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "surgery", *words]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("command", "shown"), SURGERY, ids=[c for c, _ in SURGERY])
def test_readme_command_does_what_it_shows(command: str, shown: str, tmp_path: Path) -> None:
    words = shlex.split(command)[1:]
    for before in BEFORE.get(words[0], ()):
        assert _run(shlex.split(before), tmp_path).returncode == 0
    result = _run(words, tmp_path)
    if "error[" in shown:
        assert (result.returncode, result.stderr) == (2, shown)
    else:
        assert result.returncode == 0, result.stderr
        assert shown in ("", result.stdout, "\n") or result.stdout == shown


def test_readme_names_the_two_commands() -> None:
    assert MAKE == ["make demo", "make test"]
    for command in MAKE:
        subprocess.run([*command.split(), "-n"], cwd=ROOT, check=True, capture_output=True)


def test_readme_recipe_is_the_packaged_one() -> None:
    shown = re.search(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert shown
    written = (ROOT / "recipes" / "genieblue_skip.yaml").read_text(encoding="utf-8")
    assert written.split("\n", 1)[1] == shown[1]


def test_demo_shows_an_untouched_text_path(tmp_path: Path) -> None:
    (tmp_path / "surgery-demo").mkdir()
    (tmp_path / "surgery-demo" / "thesis.txt").touch()
    env = {**os.environ, "TMPDIR": str(tmp_path), "COLUMNS": "100"}
    result = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "demo.py")],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "bit for bit as before: True" in result.stdout
    assert (tmp_path / "surgery-demo" / "thesis.txt").exists()
