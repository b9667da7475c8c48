"""`--to qnn`: the graphs of `--to onnx`, quantised and compiled for a Snapdragon.

Embeddings and angles stay in float on the CPU; blocks and head are context binaries.
"""

from typing import ClassVar, Final

from surgery.diagnostic import Diagnostic, SurgeryError
from surgery.exporter import Contents, Exporter, Job, LoraForm, Part
from surgery.exporters.onnx import float_contents
from surgery.target import Target

_COMPILED: Final = {"block": ("prefill.onnx", "decode.onnx"), "head": ("head.onnx",)}
_SCHEME: Final = "w4a16"


class QnnExporter(Exporter):
    """The same parts as `onnx`; each graph has its binary, and itself as the CPU runs it."""

    word: ClassVar[str] = "qnn"
    lora: ClassVar[LoraForm] = "keep"

    def contents(self, job: Job) -> Contents:
        """Return the parts; see `Exporter.contents`.

        Raises:
            SurgeryError: as `float_contents`; A617 without a device to compile for, X101 and
                X102 where the compiler can't run.
        """
        target = _target(job)
        from surgery.snapdragon.toolchain import PACKAGE, toolchain

        toolchain()
        floats = float_contents(job)
        from surgery.quantised_parts import QuantisedParts
        from surgery.workshop import Workshop

        compiled = QuantisedParts(Workshop(job, floats, target, _SCHEME))
        parts = {
            name: Part(part.kind, "I4", compiled.items(name, _COMPILED[part.kind]), _SCHEME)
            if part.kind in _COMPILED
            else part
            for name, part in floats.parts.items()
        }
        return Contents(parts, floats.paths, (*floats.packages, PACKAGE))


def _target(job: Job) -> Target:
    target = job.target
    if target is None or not target.chip:
        raise SurgeryError(_no_device(target))
    return target


def _no_device(target: Target | None) -> Diagnostic:
    return Diagnostic(
        code="A617",
        what="there is no device to compile for",
        why=f"for {target.device} no compiler is to be had" if target else "none is named",
        fix="add `--target snapdragon`; `surgery targets list` names others",
    )
