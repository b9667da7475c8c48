"""A base of the folder's own: one that trains in place, or that the recipe assembles."""

from pathlib import Path
from typing import Any

from surgery.adapter.depth_checkpoint import write_depth
from surgery.adapter.side_files import REWRITTEN, base_files, depth_files
from surgery.diagnostics.diagnostic import Diagnostic
from surgery.plan.planner import Plan, plan_recipe
from surgery.storage.safetensors.checkpoint import Progress
from surgery.storage.safetensors.writer import copy_file


def write_base(plan: Plan, folder: Path, progress: Progress | None) -> None:
    """Write a base's files into a folder, where its weights are to be trained.

    They are not linked: who later saves into a linked folder would write into the base.
    """
    assert plan.files is not None
    folder.mkdir(exist_ok=True)
    for file in base_files(plan):
        copy_file(file, folder / file.name)
    if plan.changes_depth:
        for name, content in depth_files(plan).items():
            (folder / name).write_bytes(content)
        write_depth(plan, folder, progress)
        return
    for file in plan.files.checkpoint().files:
        copy_file(file, folder / file.name, progress)


def write_assembly(plan: Plan, folder: Path, progress: Progress | None) -> Plan:
    """Write the model that a recipe assembles into a folder, and plan the recipe on it."""
    assert plan.assembly is not None
    folder.mkdir()
    plan.assembly.write(folder, progress)
    return plan_recipe(plan.recipe, weights=True, assembled=folder)


def copy_assembled(plan: Plan, folder: Path) -> None:
    """Take the assembled model along, which an adapter's recipe makes part of its folder."""
    if plan.recipe.vision and plan.files and plan.files.has_weights:
        folder.mkdir()
        for file in sorted(plan.files.folder.iterdir()):
            copy_file(file, folder / file.name)


def save_base(plan: Plan, model: Any, folder: Path) -> None:
    """Save the base of a PEFT model that trains in place, without what was added to it."""
    base = model.get_base_model()
    names = {*plan.anatomy.sizes, *plan.anatomy.tied, *(t.name for t in plan.anatomy.tensors())}
    base.save_pretrained(
        folder, state_dict={name: t for name, t in base.state_dict().items() if name in names}
    )


def copy_base_files(plan: Plan, folder: Path) -> None:
    """Copy the tokenizer and what else is beside the base's weights to where a model was saved."""
    for file in base_files(plan):
        if file.name not in REWRITTEN and not (folder / file.name).exists():
            copy_file(file, folder / file.name)


def has_own_base(folder: Path) -> Diagnostic:
    """What is wrong with putting such an adapter on another model."""
    return Diagnostic(
        code="A409",
        what=f"the adapter in `{folder}` goes on the trained base beside it, not on another model",
        why="its recipe trains the base in place",
        fix="leave `model` out: `load_adapter(folder)` loads both",
    )
