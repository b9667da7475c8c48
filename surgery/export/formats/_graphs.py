"""The parts of an export as graphs of static shape, one a block, with LoRA as their inputs.

A copied block is a part of its own next to its original; everything else serves both paths, since
LoRA is zeros along text. A multimodal model has its vision tower as a part of the multimodal path.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from surgery.adapter.side_files import base_files
from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.export.base import Contents, ExportJob, Item, Part, refuse_lengths
from surgery.export.file_items import Weights, copies
from surgery.plan.planner import Plan
from surgery.runtime.decode_loop import LORA, LORA_FILE, TOKENIZER
from surgery.runtime.manifest import PathName
from surgery.storage.safetensors.checkpoint import INDEX_NAME

if TYPE_CHECKING:
    from surgery.export.parts.graph_part import GraphPart
    from surgery.export.parts.split import ModelParts

_VISION: Final = "vision"
_HEAD: Final = "head"
_KINDS: Final = {name: name for name in (_VISION, "embeddings", "positions", _HEAD)}
_PACKAGES: Final = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")


def float_contents(job: ExportJob) -> Contents:
    """Return the parts in fp32; every distinct graph is traced here.

    Args:
        job: what is exported.

    Raises:
        SurgeryError: A611 for what these graphs can't hold, A612 for a model that can't be split
            into parts, A613 for impossible lengths, X110 to X112 for its graphs.
    """
    refuse(job)
    from surgery.export.parts.split import ModelParts

    model = ModelParts(job)
    vision = {_VISION: model.vision} if model.vision else {}
    before = model.before()
    graphs = {**vision, **before, **dict(_blocks(job, model)), _HEAD: model.head()}
    parts = {TOKENIZER: Part("tokenizer", "", _tokenizer(job.plan))}
    for name, part in graphs.items():
        parts[name] = Part(_KINDS.get(name, "block"), "F32", part.items)
    if job.plan.loras():
        parts[LORA] = Part("lora", "F32", [_lora(job)])
    return Contents(parts, _paths(job, tuple(vision), tuple(before)), _PACKAGES)


def _blocks(job: ExportJob, model: "ModelParts") -> "Iterator[tuple[str, GraphPart]]":
    """Each block, and behind it the multimodal path's own; where the base is shared, what runs."""
    trained = {edit.block for edit in job.plan.swaps()}
    own = _own_blocks(job)
    for index in range(job.plan.anatomy.count):
        if job.base != "shared" or index not in own:
            yield f"block.{index}", model.block(index)
        if index in own:
            yield f"copy.{index}", model.block(index, job.folder if index in trained else None)


def _own_blocks(job: ExportJob) -> set[int]:
    """The blocks of which the multimodal path has one of its own."""
    trained = {edit.block for edit in job.plan.swaps()}
    return {*range(job.plan.anatomy.count)} if job.base == "apart" else trained


def refuse(job: ExportJob) -> None:
    """Refuse what graphs of static shape in parts can't hold.

    Raises:
        SurgeryError: A611 for the plan, A613 for the lengths.
    """
    why = next(_reasons(job.plan), None)
    if why:
        raise SurgeryError(diagnostic("A611.no_parts", name=job.plan.recipe.name, why=why))
    if job.lora == "merge" and job.plan.loras():
        raise SurgeryError(diagnostic("A611.merged"))
    refuse_lengths(job)


def _reasons(plan: Plan) -> Iterator[str]:
    if plan.is_routed:
        yield f"it has {'experts' if plan.experts() else 'learners'}, which only images go through"
    if plan.in_place:
        yield "it trains or reorders the base itself, so that no block of it serves both paths"
    if plan.anatomy.quantization:
        yield f"the base is quantized ({plan.anatomy.quantization})"
    options = dict(plan.loras()[0].options) if plan.loras() else {}
    if any(lora.is_dora for lora in plan.loras()):
        yield "DoRA scales each row by its length, and is no pair of inputs"
    if options.get("init_lora_weights") in ("pissa", "olora"):
        yield f"{options['init_lora_weights']} moves the base's matrices"


def _paths(
    job: ExportJob, vision: tuple[str, ...], before: tuple[str, ...]
) -> dict[PathName, tuple[str, ...]]:
    blocks, copied = range(job.plan.anatomy.count), _own_blocks(job)
    text = [f"block.{index}" for index in blocks]
    multimodal_blocks = [
        f"copy.{index}" if index in copied else f"block.{index}" for index in blocks
    ]
    lora = (LORA,) if job.plan.loras() else ()
    multimodal = (TOKENIZER, *vision, *before, *multimodal_blocks, _HEAD, *lora)
    own = (TOKENIZER, *before, *text, _HEAD)
    return {"text": multimodal if job.base == "shared" else own, "multimodal": multimodal}


def _tokenizer(plan: Plan) -> list[Item]:
    """What encodes a prompt, and says which words end an answer."""
    return [*copies(file for file in base_files(plan) if file.name != INDEX_NAME)]


def _lora(job: ExportJob) -> Weights:
    """All pairs as inputs of the graphs, fp32, B with its scale in it."""
    from surgery.graphs.block.step_inputs import lora_pairs
    from surgery.storage.safetensors.stream import streamed
    from surgery.storage.safetensors.writer import NewTensor

    pairs = lora_pairs(job.plan.loras(), job.folder)
    tensors = (
        NewTensor(name, "F32", tuple(pair.shape), pair.contiguous().numpy().tobytes)
        for name, pair in pairs.items()
    )
    return Weights(LORA_FILE, tuple(map(streamed, tensors)))
