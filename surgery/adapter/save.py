"""An adapter folder from a model in memory."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.adapter.base_checkpoint import copy_assembled, copy_base_files, save_base
from surgery.adapter.side_files import base_folder, side_files
from surgery.adapter.weights_layout import weights_layout
from surgery.model.fingerprint import identify
from surgery.model.quiet import quiet
from surgery.paths.switching import SwitchedModel
from surgery.plan.planner import Plan
from surgery.storage.file_names import ASSEMBLED_FOLDER
from surgery.storage.staging import staged_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@quiet()
def save_adapter(
    plan: Plan, model: "PreTrainedModel", out: str | os.PathLike[str], *, overwrite: bool = False
) -> None:
    """Save a model in memory that a plan was applied to, with its current weights.

    Args:
        plan: The applied plan.
        model: The model that `apply_plan` returned.
        out: Path of the folder to make.
        overwrite: Whether to replace a folder that `surgery` wrote; False by default.

    Raises:
        SurgeryError: A301 to A308 for the disk.
    """
    with staged_folder(Path(out), overwrite=overwrite, inputs=plan.inputs()) as folder:
        save_into(plan, model, folder)


def save_into(plan: Plan, model: "PreTrainedModel", folder: Path) -> None:
    """Save as `save_adapter` does, into an empty folder.

    Args:
        plan: The applied plan.
        model: The model that `apply_plan` returned.
        folder: Path of an empty folder.

    Raises:
        OSError: For an error of the disk.
    """
    if isinstance(model, SwitchedModel):
        model.save_weights(folder)
    else:
        model.save_pretrained(folder)
    save_with_plan(plan, model, folder)


def save_with_plan(plan: Plan, model: "PreTrainedModel", folder: Path) -> None:
    """Save what belongs to a model in a folder besides the files of its own `save_pretrained`.

    Args:
        plan: what was applied.
        model: what `apply_plan` returned.
        folder: where its weights were saved.

    Raises:
        OSError: where the disk doesn't let it.
    """
    fingerprint = identify(plan.files, plan.anatomy) if plan.files else None
    copy_assembled(plan, folder / ASSEMBLED_FOLDER)
    if plan.in_place and not plan.is_plain:
        save_base(plan, model, base_folder(plan, folder))
    if plan.in_place and plan.files:
        copy_base_files(plan, base_folder(plan, folder))
    write_side_files(plan, fingerprint, folder)


def write_side_files(plan: Plan, fingerprint: dict[str, Any] | None, folder: Path) -> None:
    """Write the recipe, the plan, the card and the config of an adapter into its folder."""
    if fingerprint:
        fingerprint = {**fingerprint, "adapter": weights_layout(plan, folder)}
    for name, content in side_files(plan, fingerprint).items():
        (folder / name).write_bytes(content)
