"""What says how to install this: the distribution's name, which isn't the import's, and extras."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

from surgery.cli import build_app
from surgery.diagnostics.distribution import DISTRIBUTION, install_line
from surgery.sweep.hydra_launcher import LAUNCHERS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
OTHERS = ("wandb", "liger-kernel")
"""Packages of others that a setting of training may ask for."""
KNOWN = {*OTHERS} | {Requirement(r).name for r in chain(PROJECT["dependencies"], *EXTRAS.values())}
TEXTS = sorted(
    file
    for folder in ("docs", "surgery", "scripts", "benchmarks", "recipes")
    for file in (ROOT / folder).rglob("*")
    if file.suffix in {".md", ".py", ".yml", ".yaml", ".json", ".jinja"}
    and file.name != "distribution.py"  # which makes the line
)
TEXTS += [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "mkdocs.yml"]


def installs(text: str) -> Iterator[str]:
    """Every requirement that a `pip install` of a text names."""
    for rest in re.findall(r"\bpip3? install ([^`\"\n|,;#)]+)", text):
        words = iter(shlex.split(rest))
        for word in words:
            if word in ("-e", "--editable"):
                yield next(words).replace(".", DISTRIBUTION, 1)
            elif word in ("-c", "-r", "--index-url", "--extra-index-url", "--target"):
                next(words)
            elif not word.startswith("-"):
                yield word


def faults(text: str) -> list[str]:
    """What of a text's installs names no known package, or an extra that isn't there."""
    found = [Requirement(word) for word in installs(text)]
    return [str(r) for r in found if r.name not in KNOWN or not own_extras(r) <= EXTRAS.keys()]


def own_extras(requirement: Requirement) -> set[str]:
    return requirement.extras if requirement.name == DISTRIBUTION else set()


def test_the_distribution_has_the_name_of_the_project() -> None:
    assert PROJECT["name"] == DISTRIBUTION
    assert DISTRIBUTION in KNOWN  # extras name each other
    assert version(DISTRIBUTION) == PROJECT["version"]


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_version_is_printed(flag: str) -> None:
    result = CliRunner().invoke(build_app(), [flag])
    assert (result.exit_code, result.output) == (0, f"surgery {PROJECT['version']}\n")


def test_every_install_line_names_what_there_is() -> None:
    wrong = {
        str(file.relative_to(ROOT)): found
        for file in TEXTS
        if (found := faults(file.read_text(encoding="utf-8")))
    }
    assert wrong == {}


def test_nobody_takes_the_name_of_the_import_for_the_distribution() -> None:
    wrong = re.compile(r"(?<![-\w./])surgery\[\w+\]|(?:version|metadata)\(['\"]surgery['\"]\)")
    assert [f for f in TEXTS if wrong.search(f.read_text(encoding="utf-8"))] == []


def test_messages_name_extras_that_exist() -> None:
    code = "".join(file.read_text(encoding="utf-8") for file in TEXTS if file.suffix == ".py")
    asked = {
        *re.findall(r"install_line\(['\"](\w+)['\"]\)", code),
        *filter(None, LAUNCHERS.values()),
    }
    assert {"ray", "snapdragon"} <= asked <= EXTRAS.keys()
    assert install_line("ray") == "pip install 'model-surgery[ray]'"


def test_a_wrong_line_is_seen() -> None:
    assert faults("`pip install surgery`") == ["surgery"]
    assert faults("fix: pip install 'model-surgery[rai]'\n") == ["model-surgery[rai]"]
    assert faults("pip install -e '.[docs]' trl") == []
    assert faults("pip install torch --index-url https://x/whl") == []
