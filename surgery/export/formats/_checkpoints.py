"""The parts of an export that are plain checkpoints, and perhaps an adapter for plain PEFT."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from surgery.adapter.merged_checkpoint import (
    changed_names,
    multimodal_files,
    new_index,
    shared_tensor,
)
from surgery.adapter.side_files import base_files, base_folder
from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.export.base import Contents, ExportJob, Item, Part
from surgery.export.decoder_checkpoint import is_assembled, language_model
from surgery.export.file_items import Linked, Weights, contents_of, copies
from surgery.export.standalone_lora import lora_files
from surgery.plan.planner import Plan
from surgery.storage.safetensors.checkpoint import INDEX_NAME, Checkpoint, read_checkpoint

_LLM: Final = "llm"
_MULTIMODAL: Final = "multimodal"
_LORA: Final = "lora"
_MOVES_THE_BASE: Final = ("pissa", "olora")


def checkpoint_contents(job: ExportJob) -> Contents:
    """The parts of an export as plain checkpoints.

    Args:
        job: what is exported.

    Raises:
        SurgeryError: A602 for what no plain checkpoint holds, A603 for a LoRA that can't be merged
            or kept, M201 to M208 for the files.
    """
    refuse_no_checkpoint(job)
    keeps_lora = job.lora == "keep" and bool(job.plan.loras())
    dtype = _dtype(job.plan)
    parts = {_LLM: Part("transformers", dtype, _text(job))} if job.base != "shared" else {}
    parts[_MULTIMODAL] = Part("transformers", dtype, list(_multimodal(job)))
    if keeps_lora:
        files = lora_files(job.plan, job.folder, _MULTIMODAL)
        parts[_LORA] = Part("peft", "F32", files)
    multimodal = (_MULTIMODAL, _LORA) if keeps_lora else (_MULTIMODAL,)
    text = (_LLM,) if job.base != "shared" else multimodal
    packages = ("transformers", "safetensors", "numpy", *(("peft",) if keeps_lora else ()))
    return Contents(parts, {"text": text, "multimodal": multimodal}, packages)


def _text(job: ExportJob) -> list[Item]:
    """The files of the base; of an assembled one, its language model's."""
    files = job.plan.files
    assert files is not None
    if is_assembled(files):
        return language_model(job.plan)
    checkpoint = files.checkpoint()
    weights = (_linked(job, file, file.name) for file in checkpoint.files)
    return [*weights, *copies(_side_files(job.plan, files.folder))]


def _multimodal(job: ExportJob) -> Iterator[Item]:
    plan = job.plan
    base = base_folder(plan, job.folder)
    if plan.in_place:
        yield from _as_it_is(job, read_checkpoint(base))
        return
    files = multimodal_files(plan, job.folder, merge=job.lora == "merge")
    for file in files:
        yield _linked(job, file.same, file.name) if file.same else Weights(file.name, file.tensors)
    yield from contents_of(new_index(files))
    yield from copies(f for f in _side_files(plan, base) if f.name != INDEX_NAME)


def _as_it_is(job: ExportJob, checkpoint: Checkpoint) -> Iterator[Item]:
    """A checkpoint that training has left plain."""
    for file in checkpoint.files:
        yield _linked(job, file, file.name)
    yield from copies(_side_files(job.plan, checkpoint.folder))


def _side_files(plan: Plan, folder: Path) -> list[Path]:
    """The files next to the weights that a checkpoint needs to open and generate."""
    assert plan.files is not None
    there = replace(plan, files=replace(plan.files, folder=folder))
    always = (folder / name for name in ("config.json", INDEX_NAME))
    return sorted({*base_files(there), *(file for file in always if file.is_file())})


def _linked(job: ExportJob, source: Path, name: str) -> Linked:
    return Linked(source, name, job.copy, job.checksum, job.link)


def _dtype(plan: Plan) -> str:
    """The type of most of the base's weights."""
    sizes: dict[str, int] = {}
    for tensor in plan.anatomy.tensors():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size
    return max(sizes, key=lambda dtype: sizes[dtype])


def refuse_no_checkpoint(job: ExportJob) -> None:
    """Refuse what no plain checkpoint holds, and LoRA that is neither merged nor kept.

    Raises:
        SurgeryError: A602 to A604.
    """
    plan, merges = job.plan, job.lora == "merge"
    if plan.is_routed:
        raise SurgeryError(_is_routed(plan))
    options = dict(plan.loras()[0].options) if plan.loras() else {}
    if options.get("init_lora_weights") in _MOVES_THE_BASE:
        raise SurgeryError(diagnostic("A603.start", start=str(options["init_lora_weights"])))
    if merges and any(lora.is_dora for lora in plan.loras()):
        raise SurgeryError(diagnostic("A603.dora"))
    if plan.in_place:
        return
    copied = changed_names(plan, merge=False)
    shared = shared_tensor(plan.anatomy, copied)
    if shared:
        raise SurgeryError(diagnostic("A604", name=shared))
    merged = changed_names(plan, merge=merges) - copied
    shared = shared_tensor(plan.anatomy, merged)
    if merged and (shared or plan.anatomy.quantization):
        packed = f"the base is quantized ({plan.anatomy.quantization})"
        raise SurgeryError(
            diagnostic(
                "A603.not_merged", why=f"other blocks share `{shared}`" if shared else packed
            )
        )


def _is_routed(plan: Plan) -> Diagnostic:
    kind = "experts" if plan.experts() else "learners"
    return diagnostic("A602", name=plan.recipe.name, kind=kind)
