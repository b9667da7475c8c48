"""One graph of an export from float to a context binary, and what that costs.

Reached only where a graph is compiled.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.export.calibration import CalibrationSample
from surgery.export.parts.size_limits import refuse_large
from surgery.npu.qualcomm.agreement import agreement
from surgery.npu.qualcomm.arrays import Arrays
from surgery.npu.qualcomm.compiler import compile_graph
from surgery.npu.qualcomm.cpu_reference import reference
from surgery.npu.qualcomm.quantize import Branch, Quantizer, Scheme, quantize
from surgery.npu.qualcomm.workers.task import Compiled
from surgery.npu.target import Target
from surgery.runtime.manifest import ExportedFile, GraphRecord, PathName
from surgery.storage.safetensors.stream import hash_file

REFERENCE: Final = ".qdq.onnx"
"""Ends the name of a quantized graph before it is compiled, which the CPU can run."""
_PATHS: Final[tuple[PathName, ...]] = ("text", "multimodal")


@dataclass(frozen=True)
class FloatGraph:
    """A graph in float, and what it was given in calibration.

    Args:
        file: its file.
        record: what the manifest says of it.
        recorded: its samples along all paths that it is on; those of the last prompt are kept for
            measuring.
    """

    file: Path
    record: GraphRecord
    recorded: Sequence[CalibrationSample]

    def samples(self) -> tuple[list[Arrays], Branch | None]:
        """What shows the ranges; LoRA's own branch has them of the path that it is on.

        A graph on both paths has all others of text alone, so that text's values are those of the
        base quantized by itself. What images bring may be far outside: on builtin/tiny-qwen2 and
        builtin/tiny-vit with a projector 20 times as loud, a block had a cosine of 0.90 with float
        along the multimodal path, and 0.994 with ranges of its own, `--base apart`.
        """
        last = max(sample.prompt for sample in self.recorded)
        rest = [sample for sample in self.recorded if sample.prompt != last] or self.recorded
        text, multimodal = (_feeds(rest, path) for path in _PATHS)
        inputs = [value.name for value in self.record.inputs if value.source == "lora"]
        branch = Branch(inputs, multimodal) if text and multimodal and inputs else None
        return text or multimodal, branch

    def measured(self, quantized: Path) -> dict[PathName, dict[str, float]]:
        """The cosine of each output with float's, for each path, at the end of the last prompt."""
        last = {sample.path: sample.feeds for sample in self.recorded}
        return {
            path: {
                name: found.cosine
                for name, found in agreement(
                    reference(quantized, feeds), reference(self.file, feeds)
                ).items()
            }
            for path, feeds in last.items()
        }


def _feeds(samples: Sequence[CalibrationSample], path: PathName) -> list[Arrays]:
    return [sample.feeds for sample in samples if sample.path == path]


def files_of_graph(graph: str) -> tuple[str, ...]:
    """Return the files of a compiled graph: quantized graph, its weights, binary, compiled graph.

    Args:
        graph: its name in float, which the compiled one has too.
    """
    stem = Path(graph).stem
    return (f"{stem}{REFERENCE}", f"{stem}{REFERENCE}.data", f"{stem}_qnn.bin", graph)


def compiled(
    graph: FloatGraph, folder: Path, scheme: Scheme, target: Target, quantizer: Quantizer
) -> tuple[ExportedFile, ...]:
    """Quantize a graph, compile it, and say how far it is from float.

    Ranges and scales are kept next to the float graph, so that decode has those of prefill, which
    saw more rows: with its own, W4A16 loses 0.071 of loss on builtin/tiny-qwen2, with these 0.061.

    Args:
        graph: in float.
        folder: for its files; its name is the part's.
        scheme: bits of weights and activations.
        target: for which device; its compiler is Qualcomm's.
        quantizer: who finds the scales of its weights.

    Raises:
        SurgeryError: A616 where it doesn't compile, A618 where it is too large, X101 to X107 for
            the compiler and the quantizer.
    """
    name = graph.file.name
    quantized, weights, *_ = names = files_of_graph(name)
    samples, branch = graph.samples()
    quantize(
        graph.file,
        folder / quantized,
        scheme,
        samples,
        branch=branch,
        ranges=graph.file.with_name("ranges.json"),
        quantizer=quantizer,
        scales=graph.file.with_name("scales"),
    )
    _store_weights_alongside(folder / quantized)
    assert target.chip is not None
    answer = compile_graph(folder / quantized, *target.chip, folder / name, fp16=True)
    if not answer.accepted:
        raise SurgeryError(_refused(f"{folder.name}/{name}", answer))
    refuse_large(folder.name, answer.context_bytes, target)
    cosine = graph.measured(folder / quantized)
    record = graph.record.model_copy(update={"cosine": cosine, "weights": weights})
    return tuple(_file(folder / one, record if one == name else None) for one in names)


def _file(file: Path, graph: GraphRecord | None) -> ExportedFile:
    size, digest = file.stat().st_size, hash_file(file)
    return ExportedFile(name=file.name, bytes=size, sha256=digest, how="written", graph=graph)


def _store_weights_alongside(model: Path) -> None:
    """Let a graph have a file of weights also where the quantizer put them into it."""
    import onnx

    data = f"{model.name}.data"
    if not model.with_name(data).is_file():
        graph = onnx.load(model)
        onnx.save_model(graph, model, save_as_external_data=True, location=data, size_threshold=0)


def _refused(graph: str, answer: Compiled) -> Diagnostic:
    nodes = [f"`{node.node}` ({node.op}): {node.reason}" for node in answer.refused[:3]]
    return diagnostic("A616", graph=graph, reason="; ".join(nodes) or answer.error)
