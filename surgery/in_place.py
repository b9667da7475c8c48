"""A base that trains in place: its checkpoint is what is saved, or lies beside what is added."""

from pathlib import Path
from typing import Any

from surgery.checkpoint import Progress
from surgery.depth_files import write_depth
from surgery.diagnostic import Diagnostic
from surgery.plan import Plan
from surgery.sidefiles import REWRITTEN, base_files, depth_files
from surgery.splice import copy_file


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


def save_base(plan: Plan, model: Any, folder: Path) -> None:
    """Save the base of a PEFT model that trains in place, without what was added to it."""
    base = model.get_base_model()
    names = {*plan.anatomy.sizes, *plan.anatomy.tied, *(t.name for t in plan.anatomy.tensors())}
    base.save_pretrained(
        folder, state_dict={name: t for name, t in base.state_dict().items() if name in names}
    )


def take_along(plan: Plan, folder: Path) -> None:
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
