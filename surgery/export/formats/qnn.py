"""`--to qnn`: the graphs of `--to onnx`, quantized and compiled for a Snapdragon.

Embeddings and rotary embeddings stay in float on the CPU; vision, blocks and head are context
binaries.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Final

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.export.base import Contents, Exporter, ExportJob, LoraForm, Part
from surgery.export.formats._graphs import float_contents
from surgery.npu.qualcomm.quantize import Quantizer
from surgery.npu.target import Target

if TYPE_CHECKING:
    from surgery.npu.qualcomm.quantize import Scheme

_SCHEMES: Final[dict[str, "Scheme"]] = {"vision": "w8a16", "block": "w4a16", "head": "w4a16"}
_IN_FLOAT: Final = ("embeddings", "positions")
_DTYPES: Final = {"w4a16": "I4", "w8a16": "I8"}


class QnnExporter(Exporter):
    """The same parts as `onnx`; each graph has its binary, and itself as the CPU runs it."""

    name: ClassVar[str] = "qnn"
    takes: ClassVar[frozenset[str]] = frozenset({"prefill", "context", "calibration", "quantizer"})
    gives: ClassVar[str] = "context binaries for a Snapdragon"
    serves: ClassVar[tuple[str, ...]] = ("snapdragon", "htp", "qairt", "dlc", "hexagon")
    lora: ClassVar[LoraForm] = "keep"

    def contents(self, job: ExportJob) -> Contents:
        """Return the parts; see `Exporter.contents`.

        Raises:
            SurgeryError: as `float_contents`; A617 without a device to compile for, X101 and
                X102 where the compiler can't run, X108 without the quantizer that is asked for.
        """
        target = _target(job)
        from surgery.npu.qualcomm import aimet
        from surgery.npu.qualcomm.toolchain import PACKAGE, toolchain

        toolchain()
        quantizer = aimet.choose_quantizer(job.quantizer)
        float32 = float_contents(job)
        parts = dict(_parts(job, float32, target, quantizer))
        used = (PACKAGE, aimet.PACKAGE) if quantizer == "aimet" else (PACKAGE,)
        return Contents({**float32.parts, **parts}, float32.paths, (*float32.packages, *used))


def _parts(
    job: ExportJob, float32: Contents, target: Target, quantizer: Quantizer
) -> Iterator[tuple[str, Part]]:
    from surgery.export.parts.compile import files_of_graph
    from surgery.export.parts.quantize import QuantizedParts
    from surgery.export.parts.quantizer import PartQuantizer

    quantized = QuantizedParts(PartQuantizer(job, float32, _SCHEMES, target, quantizer))
    for name, part in float32.parts.items():
        files = [item.name for item in part.items]
        scheme = _SCHEMES.get(part.kind)
        if scheme:
            graphs = [file for file in files if file.endswith(".onnx")]
            names = [name for graph in graphs for name in files_of_graph(graph)]
            yield name, Part(part.kind, _DTYPES[scheme], quantized.items(name, names), scheme)
        elif part.kind in _IN_FLOAT:
            yield name, Part(part.kind, part.dtype, quantized.items(name, files))


def _target(job: ExportJob) -> Target:
    target = job.target
    if target is None:
        raise SurgeryError(diagnostic("A617.none_named"))
    if not target.chip:
        raise SurgeryError(diagnostic("A617.no_compiler", device=target.device))
    return target
