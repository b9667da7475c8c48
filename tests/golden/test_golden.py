"""Plans and transcripts as they were when someone last looked: a change must be seen and meant."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from surgery.adapter.side_files import side_files
from surgery.plan.planner import plan_recipe
from surgery.plan.serialization import to_json
from surgery.recipe.loading import load_recipe
from surgery.storage.file_names import PLAN_FILE

RECIPES = ["genieblue_pre", "genieblue_post", "genieblue_skip", "lora", "full_finetune"]
MISTAKES = """\
defaults: [genieblue_skip, _self_]
knobs: {placement: skp}
operations:
  adapters: {rnk: 4, modules: attention}
trian: [copies]
"""
TRANSCRIPTS = {
    "plan_genieblue_skip": ["plan", "genieblue_skip", "model=builtin/qwen2.5-3b"],
    "inspect_qwen2.5-3b": ["inspect", "builtin/qwen2.5-3b"],
    "mistakes": ["plan", "mine.yaml", "rank=0", "plcement=pre"],
    "conflicts": ["plan", "lora", "operations.copies={op: duplicate, blocks: pre 1/4}"],
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_plan_is_the_one_that_was_looked_at(recipe, golden):
    plan = plan_recipe(load_recipe(recipe, ["model=builtin/qwen2.5-3b"]))
    document = json.loads(side_files(plan, None)[PLAN_FILE])
    del document["surgery"]
    edits = [" ".join(str(value) for value in edit.values()) for edit in document["edits"]]
    golden(f"{recipe}.json", to_json({**document, "edits": edits}))


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_transcript_is_the_one_that_was_looked_at(name, golden, tmp_path):
    (tmp_path / "mine.yaml").write_text(MISTAKES)
    command = [sys.executable, "-m", "surgery", *TRANSCRIPTS[name]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    typed = " ".join(
        f"'{argument}'" if " " in argument else argument for argument in TRANSCRIPTS[name]
    )
    text = f"$ surgery {typed}\n{done.stdout}{done.stderr}$ echo $?\n{done.returncode}\n"
    recipes = str(Path(__file__).parents[2] / "recipes")
    golden(f"{name}.txt", text.replace(recipes, "RECIPES"))
