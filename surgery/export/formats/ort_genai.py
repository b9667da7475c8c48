"""`--to ort-genai`: one graph of dynamic shapes and an adapter file, for ONNX Runtime GenAI."""

from importlib.util import find_spec
from typing import ClassVar, Final

from surgery.adapter.side_files import base_files
from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.diagnostics.distribution import install_line
from surgery.export.base import Contents, Exporter, ExportJob, LoraForm, Part
from surgery.export.file_items import copies, json_content
from surgery.export.formats._graphs import refuse
from surgery.export.genai.config import genai_config
from surgery.runtime.genai.override_file import ADAPTER_FILE, CONFIG_FILE, EXTRA
from surgery.storage.safetensors.checkpoint import INDEX_NAME

_MODEL: Final = "model"
_PACKAGES: Final = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")
_LARGEST_ADAPTER: Final = (1 << 31) - (1 << 20)  # offsets in an adapter file are signed, 32 bits


class OrtGenaiExporter(Exporter):
    """One folder: the base as a graph, `mm.onnx_adapter`, config and tokenizer."""

    name: ClassVar[str] = "ort-genai"
    gives: ClassVar[str] = "a folder for ONNX Runtime GenAI, with the multimodal path as an adapter"
    serves: ClassVar[tuple[str, ...]] = ("onnxruntime-genai", "genai", "oga", "foundry")
    lora: ClassVar[LoraForm] = "keep"

    def contents(self, job: ExportJob) -> Contents:
        """Return the one part; see `Exporter.contents`.

        Raises:
            SurgeryError: A611 for what no graph of copies and LoRA holds, A612 for a model that has
                no graph, A635 for a base that isn't unshared, A636 for an adapter file that would
                be too large, A637 for a model with a vision tower, A638 without onnxruntime.
        """
        refuse(job)
        _refuse(job)
        from surgery.export.genai.model import GRAPH_FILE, GenaiModel

        assert job.plan.files is not None
        model = GenaiModel(job)
        if model.adapter_bytes > _LARGEST_ADAPTER:
            raise SurgeryError(diagnostic("A636", file=ADAPTER_FILE, size=model.adapter_bytes))
        side = (file for file in base_files(job.plan) if file.name != INDEX_NAME)
        config = json_content(CONFIG_FILE, genai_config(job.plan.files, GRAPH_FILE))
        items = [*model.items, config, *copies(side)]
        part = Part("ort-genai", "F32", items)
        return Contents({_MODEL: part}, {"text": (_MODEL,), "multimodal": (_MODEL,)}, _PACKAGES)


def _refuse(job: ExportJob) -> None:
    if job.base != "unshared":
        raise SurgeryError(diagnostic("A635", base=job.base))
    if job.plan.anatomy.names_in("vision"):
        raise SurgeryError(diagnostic("A637", source=job.plan.anatomy.source))
    if not find_spec("onnxruntime"):
        raise SurgeryError(diagnostic("A638", install_line=install_line(EXTRA)))
