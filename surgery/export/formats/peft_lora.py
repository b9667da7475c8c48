"""`--to peft-lora`: the base, and all that the multimodal path changes as one LoRA of plain PEFT.

So runtimes that switch a LoRA on by modality, such as vLLM with `default_mm_loras`, run both paths.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final

from surgery.adapter.side_files import adapter_config
from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.export.base import Contents, Exporter, ExportJob, LoraForm, Part
from surgery.export.file_items import Weights, json_content
from surgery.export.formats._checkpoints import checkpoint_contents, refuse_no_checkpoint
from surgery.export.matrix_changes import Change, latest_factors, matrix_changes
from surgery.operations.edits import PEFT_PREFIX
from surgery.plan.planner import Plan
from surgery.runtime.manifest import ExportedFile
from surgery.storage.file_names import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from surgery.storage.safetensors.header import Progress
from surgery.storage.safetensors.stream import Streamed

_MODEL: Final = "model"
_ADAPTER: Final = "adapter"
_LEFT_OUT: Final = ("use_rslora", "init_lora_weights", "revision")


class PeftLoraExporter(Exporter):
    """`model/` is the base, with a trained vision tower and projector; `adapter/` the rest."""

    name: ClassVar[str] = "peft-lora"
    takes: ClassVar[frozenset[str]] = frozenset({"copy", "link", "checksum", "lora svd:RANK"})
    gives: ClassVar[str] = (
        "a checkpoint and one LoRA with the copies' differences, for PEFT or vLLM"
    )
    serves: ClassVar[tuple[str, ...]] = ("lora", "sglang")
    lora: ClassVar[LoraForm] = "keep"

    def contents(self, job: ExportJob) -> Contents:
        """Return the parts; see `Exporter.contents`.

        Raises:
            SurgeryError: A602 to A604 as for `hf`, A632 and A634 for what no LoRA holds.
        """
        _refuse(job)
        changes = matrix_changes(job.plan, job.folder, job.rank, instead="--to hf")
        base = replace(job.plan, edits=tuple(job.plan.part_swaps()))
        model = checkpoint_contents(replace(job, plan=base, lora="merge", base="shared"))
        config = json_content(ADAPTER_CONFIG, _config(job.plan, changes))
        parts = {
            _MODEL: model.parts["multimodal"],
            _ADAPTER: Part("peft", "F32", [_Adapter(changes), config]),
        }
        both = (_MODEL, _ADAPTER)
        text = both if job.base == "shared" else (_MODEL,)
        packages = ("transformers", "peft", "safetensors", "numpy")
        return Contents(parts, {"text": text, "multimodal": both}, packages)


def _refuse(job: ExportJob) -> None:
    refuse_no_checkpoint(job)
    plan = job.plan
    if job.base == "apart":
        raise SurgeryError(diagnostic("A634.apart"))
    if job.lora == "merge":
        raise SurgeryError(diagnostic("A634.merge"))
    if plan.in_place or not (plan.loras() or plan.swaps()):
        raise SurgeryError(diagnostic("A634.no_matrices", name=plan.recipe.name))


def _config(plan: Plan, changes: Sequence[Change]) -> dict[str, Any]:
    """The content of adapter_config.json; each alpha equals its rank, since B has the scale.

    vLLM scales all products by `lora_alpha / r` and takes the tensors' own ranks
    (`vllm/lora/peft_helper.py`).
    """
    kept = {name: x for name, x in adapter_config(plan).items() if name not in _LEFT_OUT}
    rank = max(change.rank for change in changes)
    ranks = {c.path.replace(".", r"\."): c.rank for c in changes if c.rank != rank}
    own = {
        "base_model_name_or_path": _MODEL,
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": [change.path for change in changes],
        "modules_to_save": None,
    }
    return {**kept, **own}


@dataclass(frozen=True)
class _Adapter:
    """The weight file of the adapter."""

    changes: Sequence[Change]
    name: str = ADAPTER_WEIGHTS

    def required_space(self, folder: Path) -> int:
        """Its size."""
        return Weights(self.name, tuple(self._tensors({}))).required_space(folder)

    def write(self, folder: Path, progress: Progress | None) -> ExportedFile:
        """Compute and write matrix by matrix."""
        lost: dict[str, float] = {}
        written = Weights(self.name, tuple(self._tensors(lost))).write(folder, progress)
        return written.model_copy(update={"lost": lost})

    def _tensors(self, lost: dict[str, float]) -> Iterator[Streamed]:
        """A and B of each matrix, one after the other; what is lost is noted as they are made."""
        factors = latest_factors(self.changes, lost)

        def chunks(index: int, side: str) -> Iterator[bytes]:
            yield getattr(factors(index), side).astype("<f4").tobytes()

        for index, change in enumerate(self.changes):
            shapes = {"a": (change.rank, change.inputs), "b": (change.outputs, change.rank)}
            for side, shape in shapes.items():
                name = f"{PEFT_PREFIX}{change.path}.lora_{side.upper()}.weight"
                yield Streamed((name, "F32", shape), partial(chunks, index, side))
