"""`--to gguf`: a base and an adapter for llama.cpp, or two complete models."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import ClassVar, Final

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.diagnostics.distribution import install_line
from surgery.export.base import Contents, Exporter, ExportJob, LoraForm, Part, WeightType
from surgery.export.formats._checkpoints import refuse_no_checkpoint
from surgery.export.gguf.adapter import adapter_tensors, describe_adapter
from surgery.export.gguf.architecture import Decoder
from surgery.export.gguf.file import GgufFile
from surgery.export.gguf.model import (
    base_tensors,
    model_items,
    multimodal_tensors,
)
from surgery.export.gguf.tokenizer import refuse_tokenizer
from surgery.export.matrix_changes import Change, matrix_changes
from surgery.model.loading import load_config
from surgery.storage.file_names import GGUF_ADAPTER

_LLM: Final = "llm"
_MULTIMODAL: Final = "multimodal"
_ADAPTER: Final = "adapter"
_RECORDS: Final[Mapping[WeightType, tuple[str, str]]] = {
    "f32": ("F32", "none"),
    "f16": ("F16", "none"),
    "q8_0": ("F16", "q8_0"),
    "q4_0": ("F16", "q4_0"),
}
"""Type and quantization in a manifest."""


class GgufExporter(Exporter):
    """`llm/` is the base, and `adapter/` switches copies and LoRA on; or `multimodal/` is whole."""

    name: ClassVar[str] = "gguf"
    takes: ClassVar[frozenset[str]] = frozenset({"dtype", "lora svd:RANK"})
    gives: ClassVar[str] = "a base and an adapter for llama.cpp"
    serves: ClassVar[tuple[str, ...]] = ("llama.cpp", "llamacpp", "ollama", "lmstudio")
    lora: ClassVar[LoraForm] = "keep"

    def contents(self, job: ExportJob) -> Contents:
        """Return the parts; see `Exporter.contents`.

        Raises:
            SurgeryError: A602 to A604 for what no plain checkpoint or LoRA holds, A630 for a model
                that llama.cpp doesn't compute, A631 for its tokenizer, A632 for copies or LoRA that
                no adapter holds, A633 without the package `gguf`.
        """
        _refuse(job)
        assert job.plan.files is not None
        decoder = Decoder(load_config(job.plan.files.folder))
        refuse_tokenizer(job.plan.files.folder)
        parts = _models(job, decoder)
        if changes := _changes(job):
            dtype: WeightType = "f32" if job.dtype == "f32" else "f16"
            name, lost = decoder.architecture.name, dict[str, float]()
            tensors = list(adapter_tensors(changes, decoder, lost))
            file = GgufFile(GGUF_ADAPTER, name, dtype, tensors, describe_adapter, lost)
            parts[_ADAPTER] = Part("gguf", _RECORDS[dtype][0], [file])
        multimodal = tuple(name for name in parts if name != _LLM or not _is_complete(job))
        text = multimodal if job.base == "shared" else (_LLM,)
        packages = ("gguf", "numpy", "transformers")
        return Contents(parts, {"text": text, "multimodal": multimodal}, packages)


def _is_complete(job: ExportJob) -> bool:
    """Whether the multimodal path has a complete model of its own."""
    return job.base != "unshared" or job.plan.in_place


def _models(job: ExportJob, decoder: Decoder) -> dict[str, Part]:
    dtype = job.dtype or "f16"
    kind, quantization = _RECORDS[dtype]
    made = {_LLM: base_tensors} if job.base != "shared" else {}
    if _is_complete(job):
        made[_MULTIMODAL] = multimodal_tensors
    return {
        name: Part("gguf", kind, model_items(job, decoder, tensors(job), dtype), quantization)
        for name, tensors in made.items()
    }


def _changes(job: ExportJob) -> list[Change]:
    if job.plan.in_place or (job.lora == "merge" and _is_complete(job)):
        return []
    copies, instead = not _is_complete(job), "--base apart"
    return matrix_changes(job.plan, job.folder, job.rank, copies=copies, instead=instead)


def _refuse(job: ExportJob) -> None:
    plan = job.plan
    if find_spec("gguf") is None:
        raise SurgeryError(diagnostic("A633.writer", install_line=install_line(GgufExporter.name)))
    refuse_no_checkpoint(job)
    if plan.changes_depth:
        raise SurgeryError(diagnostic("A630.depth", name=plan.recipe.name))
    if plan.anatomy.names_in("vision"):
        raise SurgeryError(diagnostic("A630.vision", source=plan.anatomy.source))
    if plan.anatomy.quantization:
        raise SurgeryError(
            diagnostic(
                "A630.quantized",
                source=plan.anatomy.source,
                quantization=plan.anatomy.quantization,
            )
        )
    if job.lora == "merge" and not _is_complete(job) and plan.loras():
        raise SurgeryError(diagnostic("A632.merged"))
