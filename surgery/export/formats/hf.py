"""`--to hf`: checkpoints for plain transformers, and perhaps an adapter for plain PEFT."""

from typing import ClassVar

from surgery.export.base import Contents, Exporter, ExportJob
from surgery.export.formats._checkpoints import checkpoint_contents


class HfExporter(Exporter):
    """`llm/` is the base; `multimodal/` has the copies in place; `lora/` is what wasn't merged."""

    name: ClassVar[str] = "hf"
    takes: ClassVar[frozenset[str]] = frozenset({"copy", "link", "checksum"})
    gives: ClassVar[str] = "checkpoints for transformers, and for converters that read those"
    serves: ClassVar[tuple[str, ...]] = (
        *("transformers", "huggingface", "safetensors", "pytorch", "torch", "peft"),
        *("mlx", "mlc", "vllm", "awq", "gptq", "coreml"),
    )

    def contents(self, job: ExportJob) -> Contents:
        """Return the parts; see `Exporter.contents`.

        Raises:
            SurgeryError: as `checkpoint_contents`.
        """
        return checkpoint_contents(job)
