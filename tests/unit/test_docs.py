"""What is generated is committed as it would be generated now, and the schema takes our recipes."""

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import yaml

from surgery.compose import packaged_recipes, recipes_folder
from surgery.recipe import recipe_schema

ROOT = Path(__file__).parents[2]


def test_generated_pages_are_fresh():
    command = [sys.executable, "docs/generate.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", [*packaged_recipes(), "base"])
def test_packaged_recipe_fits_the_schema(name):
    content = yaml.safe_load((recipes_folder() / f"{name}.yaml").read_text())
    jsonschema.Draft202012Validator(recipe_schema()).validate(content)


@pytest.mark.parametrize(
    "content",
    [
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
