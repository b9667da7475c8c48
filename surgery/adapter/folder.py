"""The adapter folder: written disk to disk, saved from memory, loaded onto its base.

It is a PEFT adapter, so that plain `peft` opens it; recipe, plan and model card are next to the
weights. A recipe that trains the base in place has a plain checkpoint instead.
"""

import json
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.adapter.apply import open_adapter
from surgery.adapter.base_checkpoint import has_own_base, write_assembly, write_base
from surgery.adapter.consistency import assembled_folder, read_document, refuse_inconsistent
from surgery.adapter.save import save_adapter, write_side_files
from surgery.adapter.side_files import adapter_name, base_folder, saved_plan, weight_bytes
from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.model.fingerprint import identify, refuse_other_base, refuse_other_model
from surgery.model.loading import load_base
from surgery.model.names.disk_names import DiskNames, read_disk_names
from surgery.model.quiet import quiet
from surgery.model.reader import missing_weights, read_anatomy
from surgery.operations.edits import AddedTensor
from surgery.operations.initial_values import initial_value
from surgery.plan.planner import Plan, make_plan, plan_recipe
from surgery.plan.serialization import first_difference, recipe_in, recipe_of
from surgery.storage.disk_errors import check_free_space
from surgery.storage.file_names import ADAPTER_WEIGHTS, ASSEMBLED_FOLDER, PLAN_FILE
from surgery.storage.inputs import Input
from surgery.storage.json_file import read_regular
from surgery.storage.safetensors.checkpoint import Progress
from surgery.storage.safetensors.header import read_errors
from surgery.storage.safetensors.writer import NewTensor, write_safetensors
from surgery.storage.staging import staged_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "load_adapter",
    "load_base",
    "load_plan",
    "read_plan",
    "save_adapter",
    "write_adapter",
]


def write_adapter(
    plan: Plan,
    out: str | os.PathLike[str],
    *,
    checksum: bool = False,
    overwrite: bool = False,
    inputs: Iterable[Input] = (),
    progress: Progress | None = None,
) -> None:
    """Apply a plan disk to disk; the model is never loaded.

    Args:
        plan: A plan of `plan_recipe`, which knows the base's files.
        out: Path of the folder to make.
        checksum: Whether the fingerprint covers every byte of the base; False by default.
        overwrite: Whether to replace a folder that `surgery` wrote; False by default.
        inputs: Further paths that are read, such as a file of the plan.
        progress: Progress callback for the bytes of each step, which add up to
            `weight_bytes(plan)`.

    Raises:
        SurgeryError: A301 to A308 for the disk, A404 for a start that needs the weights.
    """
    assert plan.files is not None
    out = Path(out)
    _refuse_starts_from_weights(plan)
    fingerprint = identify(plan.files, plan.anatomy, checksum=checksum)
    with staged_folder(out, overwrite=overwrite, inputs=[*plan.inputs(), *inputs]) as folder:
        check_free_space(out, weight_bytes(plan))
        if plan.assembly:
            plan = write_assembly(plan, folder / ASSEMBLED_FOLDER, progress)
            assert plan.files is not None
            fingerprint = identify(plan.files, plan.anatomy, checksum=checksum)
        if plan.in_place:
            write_base(plan, base_folder(plan, folder), progress)
        if not plan.is_plain:
            write_safetensors(folder / ADAPTER_WEIGHTS, _new_tensors(plan), progress=progress)
        write_side_files(plan, fingerprint, folder)


def read_plan(
    folder: Path, base: str | os.PathLike[str] | None = None, *, trust_remote_code: bool = False
) -> tuple[Plan, dict[str, Any]]:
    """Return the plan of an adapter folder, planned again, and the content of its plan.json.

    Args:
        folder: Path of an adapter folder.
        base: Path or hub id of the base, with weights; the one that the plan names by default.
        trust_remote_code: Whether the base may run its own Python code; False by default.

    Raises:
        SurgeryError: A402, for no adapter folder; A401, if the base isn't the adapter's; A420 to
            A423, if the files don't describe one model.
    """
    document = read_document(folder)
    recipe = recipe_in(document, str(folder / PLAN_FILE))
    assembled = assembled_folder(folder, document) if recipe.vision and not base else None
    if not assembled:
        named = {"model": os.fspath(base) if base else document["model"]["source"], "vision": None}
        recipe = recipe.model_copy(update=named)
    plan = plan_recipe(
        recipe, weights=True, trust_remote_code=trust_remote_code, assembled=assembled
    )
    assert plan.files is not None
    recorded = document["model"]["fingerprint"] or {}
    found = identify(plan.files, plan.anatomy, checksum=bool(recorded.get("checksum")))
    refuse_other_base(recorded, found, plan.anatomy.source)
    refuse_inconsistent(plan, document, folder, trust_remote_code=trust_remote_code)
    return plan, document


def load_plan(file: str | os.PathLike[str]) -> Plan:
    """Read a plan that `surgery plan --out` saved, and make sure that it still means the same.

    Raises:
        SurgeryError: P210, if the file is no plan, or if the model or this version would now give
            another one.
    """
    file = Path(file)
    with read_errors(file):
        text = read_regular(file).decode(errors="replace")
    recipe = recipe_of(text, str(file))
    plan = plan_recipe(recipe, weights=True)
    made = plan_recipe(recipe) if plan.assembly else plan  # as `surgery plan` made it
    saved, current = json.loads(text), json.loads(saved_plan(made))
    difference = first_difference(_comparable(saved, current), _comparable(current, saved))
    if difference:
        raise SurgeryError(diagnostic("P210.stale", file=file, difference=difference))
    return plan


def _comparable(document: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """A plan without texts, what it has only once it is applied, or what `other` is too old for."""
    document = {**document, "diagnostics": _codes(document.get("diagnostics"))}
    own, known = (_fingerprint(each) for each in (document, other))
    if own is None or known is None:
        return document
    own = {key: value for key, value in own.items() if key in known and key != "adapter"}
    return {**document, "model": {**document["model"], "fingerprint": own}}


def _codes(diagnostics: object) -> object:
    """Code and key of each diagnostic: another version may word them otherwise."""
    if not isinstance(diagnostics, list):
        return diagnostics
    return [
        [found.get("code"), found.get("key")] if isinstance(found, dict) else found
        for found in diagnostics
    ]


def _fingerprint(document: dict[str, Any]) -> dict[str, Any] | None:
    """The base's fingerprint in a document that may have been edited; None without one."""
    model = document.get("model")
    found = model.get("fingerprint") if isinstance(model, dict) else None
    return found if isinstance(found, dict) else None


@quiet()
def load_adapter(
    folder: str | os.PathLike[str],
    model: "PreTrainedModel | None" = None,
    *,
    base: str | os.PathLike[str] | None = None,
    trainable: bool = False,
    trust_remote_code: bool = False,
) -> "PreTrainedModel":
    """Load an adapter folder onto its base, with both paths.

    Args:
        folder: Path of a folder that `surgery apply` or `save_adapter` wrote.
        model: The base in memory; loaded from disk by default.
        base: Path or hub id of the base; the one that the plan names by default.
        trainable: Whether what the plan trains requires gradients; False by default.
        trust_remote_code: Whether the base may run its own Python code; False by default.

    Raises:
        SurgeryError: A402 for no adapter or other weights, A401 for another base, A420 to A423 for
            files that don't describe one model, M204.
    """
    folder = Path(folder)
    if model is None:
        plan, _ = read_plan(folder, base, trust_remote_code=trust_remote_code)
        location = base_folder(plan, folder)
        model = load_base(str(location), trust_remote_code=trust_remote_code)
    else:
        document = read_document(folder)
        recipe = recipe_in(document, str(folder / PLAN_FILE))
        plan = make_plan(recipe, read_anatomy(model))
        if plan.in_place and not plan.is_plain:
            raise SurgeryError(has_own_base(folder))
        source = model.config.name_or_path or type(model).__name__
        refuse_other_model(document["model"]["fingerprint"], model, source)
        refuse_inconsistent(plan, document, folder, trust_remote_code=trust_remote_code)
    return open_adapter(plan, model, folder, trainable=trainable)


def _new_tensors(plan: Plan) -> list[NewTensor]:
    assert plan.files is not None
    stored = read_disk_names(plan.files, plan.anatomy)
    added = (tensor for edit in plan.edits for tensor in edit.tensors)
    return [_new_tensor(plan, tensor, stored) for tensor in added]


def _new_tensor(plan: Plan, tensor: AddedTensor, stored: DiskNames) -> NewTensor:
    name, dtype, shape = adapter_name(tensor), tensor.dtype, tensor.shape
    if tensor.start != "copy":
        return NewTensor(name, dtype, shape, partial(_start, plan.recipe.seed, tensor))
    origin = stored.origin(tensor.copied)
    if origin is None:
        raise SurgeryError(missing_weights(plan.anatomy, tensor.copied, stored))
    return NewTensor(name, dtype, shape, stored.source(origin))


def _start(seed: int, tensor: AddedTensor) -> bytes:
    return initial_value(seed, tensor).astype("<f4").tobytes()


def _refuse_starts_from_weights(plan: Plan) -> None:
    edit = next((e for e in plan.edits if any(t.start == "weights" for t in e.tensors)), None)
    if edit:
        raise SurgeryError(
            plan.recipe.locate(
                [
                    diagnostic(
                        "A404", operation=edit.operation, key=f"operations.{edit.operation}.peft"
                    )
                ]
            )
        )
