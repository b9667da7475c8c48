"""`--to onnx`: graphs of static shape in fp32, one a block, for onnxruntime and its like."""

from typing import ClassVar

from surgery.export.base import Contents, Exporter, ExportJob, LoraForm
from surgery.export.formats._graphs import float_contents
from surgery.export.parts.size_limits import refuse_large_parts


class OnnxExporter(Exporter):
    """One part each for vision, embeddings, positions, blocks, copies and head; LoRA; tokenizer."""

    name: ClassVar[str] = "onnx"
    takes: ClassVar[frozenset[str]] = frozenset({"prefill", "context"})
    gives: ClassVar[str] = "graphs of static shape, one a block"
    serves: ClassVar[tuple[str, ...]] = ("onnxruntime", "ort", "openvino", "tensorrt")
    lora: ClassVar[LoraForm] = "keep"

    def contents(self, job: ExportJob) -> Contents:
        """Return the parts; see `Exporter.contents`.

        Raises:
            SurgeryError: as `float_contents`; A618 for a part that is too large for the device.
        """
        refuse_large_parts(job.plan, job.target)
        return float_contents(job)
