"""A base inside the adapter folder: one that trains in place, or that the recipe assembles."""

from pathlib import Path
from typing import Any

from surgery.adapter.depth_checkpoint import write_depth
from surgery.adapter.side_files import REWRITTEN, base_files, depth_files
from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic
from surgery.plan.planner import Plan, plan_recipe
from surgery.storage.safetensors.checkpoint import Progress
from surgery.storage.safetensors.writer import copy_file


def write_base(plan: Plan, folder: Path, progress: Progress | None) -> None:
    """Write the base's files to a folder in which its weights will be trained.

    They are copied and not linked: saving into a folder of links would overwrite the base.
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
    """Write the model that a recipe assembles to a folder, and plan the recipe on it."""
    assert plan.assembly is not None
    folder.mkdir()
    plan.assembly.write(folder, progress)
    return plan_recipe(plan.recipe, weights=True, assembled=folder)


def copy_assembled(plan: Plan, folder: Path) -> None:
    """Copy the assembled model, which belongs to the folder of its adapter."""
    if plan.recipe.vision and plan.files and plan.files.has_weights:
        folder.mkdir(exist_ok=True)
        for file in sorted(plan.files.folder.iterdir()):
            if not (folder / file.name).exists():
                copy_file(file, folder / file.name)


def save_base(plan: Plan, model: Any, folder: Path) -> None:
    """Save the base of a PEFT model that trains in place, without the added tensors."""
    base = model.get_base_model()
    names = {*plan.anatomy.sizes, *plan.anatomy.tied, *(t.name for t in plan.anatomy.tensors())}
    base.save_pretrained(
        folder, state_dict={name: t for name, t in base.state_dict().items() if name in names}
    )


def copy_base_files(plan: Plan, folder: Path) -> None:
    """Copy the tokenizer and the other files next to the base's weights to a saved model."""
    for file in base_files(plan):
        if file.name not in REWRITTEN and not (folder / file.name).exists():
            copy_file(file, folder / file.name)


def has_own_base(folder: Path) -> Diagnostic:
    """The error of loading such an adapter onto another model."""
    return diagnostic("A409", folder=folder)
