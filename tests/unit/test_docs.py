"""What is generated is committed as it would be generated now, and the schema takes our recipes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from surgery.cli import build_app
from surgery.recipe.loading import load_recipe
from surgery.recipe.recipe_file import packaged_recipes, recipes_folder
from surgery.recipe.schema import recipe_schema

ROOT = Path(__file__).parents[2]


def test_generated_pages_are_fresh():
    command = [sys.executable, "docs/generate.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", [*packaged_recipes(), "base"])
def test_packaged_recipe_fits_the_schema(name):
    content = yaml.safe_load((recipes_folder() / f"{name}.yaml").read_text())
    jsonschema.Draft202012Validator(recipe_schema()).validate(content)


def recipes_in_docs():
    """Every recipe, or part of one, that a page shows; pages of errors show wrong ones."""
    pages = [
        ROOT / "README.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "docs").glob("how-to/*.md"),
    ]
    fields = {*recipe_schema()["properties"]}
    for page in pages:
        blocks = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
        for text in blocks:
            content = yaml.safe_load(text)
            if content and content.keys() & fields:
                yield pytest.param(text, id=f"{page.name}: {text.splitlines()[0]}")


@pytest.mark.parametrize("text", recipes_in_docs())
def test_recipe_of_a_page_fits_the_schema_and_loads(text, tmp_path):
    content = yaml.safe_load(text)
    jsonschema.Draft202012Validator(recipe_schema()).validate(content)
    if "defaults" in content:
        (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
        load_recipe(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    "content",
    [
        {"operations": {"adapters": {"modules": ["attention"]}}},
        {"operations": {"adapters": {"rank": "${knobs.rank}"}}},
        {"operations": {"copies": {"op": "duplicate"}}},
        {"stages": {"a": {"data": {"sight": {"weight": 2}}, "rates": {"copies": "${knobs.r}"}}}},
        {"train": ["copies", "${knobs.also}"]},
        {"operations": {"deeper": {"ranges": [[0, "3/4"], ["1/4", 12]]}}},
    ],
)
def test_part_of_a_recipe_fits_the_schema(content):
    jsonschema.Draft202012Validator(recipe_schema()).validate(content)


@pytest.mark.parametrize("name", ["genieblue_skip", "base"])
def test_copied_recipe_names_no_schema_that_is_not_there(name, tmp_path):
    copied = tmp_path / "mine.yaml"
    run = CliRunner().invoke(build_app(), ["recipes", "copy", name, str(copied)])
    assert run.exit_code == 0
    assert "$schema" not in copied.read_text()
    copied.write_text(f"# yaml-language-server: $schema=own.json\n{copied.read_text()}")
    for there in (False, True):
        again = tmp_path / f"{there}.yaml"
        CliRunner().invoke(build_app(), ["recipes", "copy", str(copied), str(again)])
        assert ("$schema=own.json" in again.read_text()) is there
        (tmp_path / "own.json").write_text("{}")


@pytest.mark.parametrize(
    "content",
    [
        {"operations": {"a": {"rnk": 3}}},
        {"operations": {"a": {"rank": "three"}}},
        {"operations": {"a": {"op": "duplicate", "rank": 3}}},
        {"operations": {"a": {"rank": 4, "form": "gather"}}},
        {"stages": {"a": {"stpes": 4}}},
        {"stages": {"a": {"rates": {"copies": "fast"}}}},
        {"modell": "a"},
        {"train": "decoder"},
        {"operations": {"a": {"op": "lora", "blocks": "all", "rnk": 3}}},
        {"operations": {"a": {"op": "lorra", "blocks": "all"}}},
        {"seed": "x"},
    ],
)
def test_mistake_does_not_fit_the_schema(content):
    validator = jsonschema.Draft202012Validator(json.loads(json.dumps(recipe_schema())))
    assert not validator.is_valid(content)
