"""The base of exporters: a module in `export/formats` defines one, named by what `--to` takes.

An exporter says which parts there will be and what each file of them is made of. The frame,
`export/export.py`, checks the free disk space, writes the manifest, and leaves a
folder that is complete or none.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.npu.qualcomm.quantize import Quantizer
from surgery.npu.target import Target
from surgery.plan.planner import Plan
from surgery.plugins import classes_in
from surgery.runtime.manifest import ExportedFile, PathName
from surgery.runtime.prompt_chunk import Phase
from surgery.storage.safetensors.header import Progress

LoraForm = Literal["merge", "keep"]
BaseForm = Literal["unshared", "shared", "apart"]
WeightType = Literal["f32", "f16", "q8_0", "q4_0"]


@dataclass(frozen=True)
class ExportJob:
    """What is to be exported, and how.

    Args:
        plan: the adapter's, on its base.
        folder: the adapter folder.
        lora: whether LoRA is merged into its matrices, or kept as a part of its own.
        base: whether text has the untouched base, or runs on the multimodal path; `apart`, where
            none of its parts is the multimodal path's too.
        copy: whether files of the base are copied where they could be reflinks.
        link: whether they may be hard links, where they can't be reflinks and aren't copied.
        checksum: whether linked files are read for their SHA-256.
        target: the device, if one is named.
        prefill: tokens of one step of the prompt, for forms of static shape; with 1 the prompt
            goes through the graphs of one token.
        context: tokens of prompt and answer together, for the same.
        calibration: records whose ranges a quantized form takes; None for built-in sentences.
        quantizer: who finds the scales of weights; None for AIMET where it is installed.
        dtype: type of most matrices, for forms that have a choice; None for the form's own.
        rank: largest rank of an adapter's matrices; None where nothing is cut.
        trust_remote_code: whether the model may run code of its own.
    """

    plan: Plan
    folder: Path
    lora: LoraForm = "merge"
    base: BaseForm = "unshared"
    copy: bool = False
    link: bool = False
    checksum: bool = False
    target: Target | None = None
    prefill: int = 64
    context: int = 1024
    calibration: Path | None = None
    quantizer: Quantizer | None = None
    dtype: WeightType | None = None
    rank: int | None = None
    trust_remote_code: bool = False

    @property
    def lengths(self) -> dict[Phase, int]:
        """Tokens of a step, in each phase that has graphs of its own."""
        return {"prefill": self.prefill, "decode": 1} if self.prefill > 1 else {"decode": 1}


class Item(Protocol):
    """One file to write."""

    @property
    def name(self) -> str:
        """The file's name."""

    def required_space(self, folder: Path) -> int:
        """Bytes that writing it into a folder takes up, or goes through."""

    def write(self, folder: Path, progress: Progress | None) -> ExportedFile:
        """Write it into a folder that exists."""


@dataclass(frozen=True)
class Part:
    """A folder of an export.

    Args:
        kind: what it is, as in `PartRecord`.
        dtype: the same.
        quantization: the same.
        items: its files.
    """

    kind: str
    dtype: str
    items: Sequence[Item]
    quantization: str = "none"


@dataclass(frozen=True)
class Contents:
    """What an export will hold.

    Args:
        parts: by the name of their folders.
        paths: the parts that each path uses, the model first.
        packages: whose versions belong into the manifest.
    """

    parts: Mapping[str, Part]
    paths: Mapping[PathName, tuple[str, ...]]
    packages: Sequence[str]


class Exporter(ABC):
    """One form of export."""

    name: ClassVar[str]
    """What `--to` takes."""

    gives: ClassVar[str]
    """What it writes, in a few words."""

    serves: ClassVar[tuple[str, ...]] = ()
    """Other formats and tools, by the words that users look for, that begin with what it writes."""

    lora: ClassVar[LoraForm] = "merge"
    """What becomes of LoRA unless the user says it."""

    takes: ClassVar[frozenset[str]] = frozenset()
    """The options of `prepare_export` that change what it writes, besides those of every form."""

    @abstractmethod
    def contents(self, job: ExportJob) -> Contents:
        """Say what the export will hold; nothing is written.

        Raises:
            SurgeryError: where this adapter can't have this form.
        """


def refuse_lengths(job: ExportJob) -> None:
    """Refuse steps that no cache takes.

    Raises:
        SurgeryError: A613.
    """
    if not 0 < job.prefill <= job.context:
        raise SurgeryError(diagnostic("A613", prefill=job.prefill, context=job.context))


def known_exporters() -> dict[str, Exporter]:
    """Every exporter by its word, found in the folder `surgery/export/formats`."""
    classes = classes_in("surgery.export.formats", Exporter)  # type: ignore[type-abstract]
    return {cls.name: cls() for cls in classes}
