"""`--to executorch`: a program of each path that XNNPACK runs on a CPU, in fp32.

What `--to hf` writes is what is lowered, so LoRA is merged, and every recipe that has a plain
checkpoint has a program.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, Final

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.export.base import Contents, Exporter, ExportJob, Item, Part, refuse_lengths
from surgery.export.file_items import Linked, Weights
from surgery.export.formats._checkpoints import checkpoint_contents
from surgery.export.formats._executorch_lowering import Lengths, lower, require_compiler
from surgery.model.anatomy import Anatomy
from surgery.runtime.executorch_program import EXTRA
from surgery.runtime.manifest import ExportedFile
from surgery.storage.safetensors.checkpoint import INDEX_NAME
from surgery.storage.safetensors.header import Progress
from surgery.storage.safetensors.stream import hash_file

_PROGRAM: Final = "model.pte"
_TEXT: Final = "llm"
_PACKAGES: Final = ("torch", "torchao", "transformers", "executorch")
_FP32_BYTES: Final = 4
_GRAPH_BYTES: Final = 1 << 16  # more than the graph of a block takes without weights


class ExecutorchExporter(Exporter):
    """The parts of `hf`, each a program with the files that encode a prompt for it."""

    name: ClassVar[str] = EXTRA
    takes: ClassVar[frozenset[str]] = frozenset({"prefill", "context"})
    gives: ClassVar[str] = "a .pte program a path, for CPUs"
    serves: ClassVar[tuple[str, ...]] = ("pte", "xnnpack")

    def contents(self, job: ExportJob) -> Contents:
        """Return the parts; see `Exporter.contents`.

        Raises:
            SurgeryError: as `checkpoint_contents`; A613 for impossible lengths, A621 without
                ExecuTorch, A623 for what no program holds.
        """
        _refuse(job)
        require_compiler()
        checkpoint = checkpoint_contents(replace(job, copy=False, checksum=False))
        parts = {
            name: Part("program", "F32", _items(job, name, part))
            for name, part in checkpoint.parts.items()
        }
        return Contents(parts, checkpoint.paths, _PACKAGES)


@dataclass(frozen=True)
class _Lowered:
    """A program out of a plain checkpoint, which is written next to it, lowered and removed.

    Args:
        checkpoint: all its files.
        size: bytes of the program, at most.
        lengths: of a step and of the cache.
        trust_remote_code: whether the model may run code of its own.
    """

    checkpoint: Sequence[Item]
    size: int
    lengths: Lengths
    trust_remote_code: bool
    name: str = _PROGRAM

    def required_space(self, folder: Path) -> int:
        """The checkpoint's, and an upper bound of its own."""
        return self.size + sum(item.required_space(folder) for item in self.checkpoint)

    def write(self, folder: Path, progress: Progress | None) -> ExportedFile:
        """Lower it; a killed process leaves the checkpoint in an export that is never finished."""
        target = folder / self.name
        with TemporaryDirectory(prefix=".checkpoint-", dir=folder) as work:
            for item in self.checkpoint:
                item.write(Path(work), progress)
            remote = self.trust_remote_code
            record = lower(Path(work), target, self.lengths, trust_remote_code=remote)
        if progress:
            progress(self.size)
        size, digest = target.stat().st_size, hash_file(target)
        return ExportedFile(name=self.name, bytes=size, sha256=digest, how="written", graph=record)


def _items(job: ExportJob, name: str, checkpoint: Part) -> list[Item]:
    """The small files of a checkpoint, and the program out of all of them."""
    small = [item for item in checkpoint.items if not isinstance(item, Linked | Weights)]
    lengths = Lengths(job.prefill, job.context)
    plan = job.plan
    size = _size(plan.anatomy if name == _TEXT else plan.result)
    program = _Lowered(checkpoint.items, size, lengths, job.trust_remote_code)
    return [*(item for item in small if item.name != INDEX_NAME), program]


def _size(anatomy: Anatomy) -> int:
    """Bytes of a program, at most; a tensor that is two things is in it twice."""
    sizes = anatomy.sizes
    weights = sum(sizes.values()) + sum(sizes.get(name, 0) for name in anatomy.tied.values())
    return _FP32_BYTES * weights + _GRAPH_BYTES * (anatomy.count + 1)


def _refuse(job: ExportJob) -> None:
    if job.lora == "keep" and job.plan.loras():
        raise SurgeryError(diagnostic("A623"))
    if job.plan.anatomy.names_in("vision"):
        raise SurgeryError(diagnostic("A622.multimodal", name=job.plan.recipe.name))
    refuse_lengths(job)
