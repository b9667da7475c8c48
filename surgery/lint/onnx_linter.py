"""Levels 2 and 3 on an ONNX file that somebody else made."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from surgery.diagnostics.finding import Finding
from surgery.lint.base import GraphSubject
from surgery.lint.compiler_findings import Case, findings_on, overruled, proof_of
from surgery.lint.onnx.live_nodes import is_static, live_graph
from surgery.lint.onnx.reader import subject_of
from surgery.lint.proof_inputs import meaningful_inputs
from surgery.lint.report import Proof
from surgery.lint.rule_runner import lint_graph
from surgery.npu.qualcomm.prove import prove
from surgery.npu.qualcomm.quantize import Scheme
from surgery.npu.target import Target

_QUANTIZED: Final = ("QuantizeLinear", "DequantizeLinear")
_SAMPLES: Final = 2
AS_WRITTEN: Final = "as written"
"""The scheme of a graph that is quantized already."""


def lint_file(
    file: Path,
    target: Target,
    schemes: Sequence[Scheme],
    progress: Callable[[str], None],
    seconds: float,
) -> tuple[list[Finding], list[Proof]]:
    """Apply every rule on graphs to an ONNX file, and prove it where schemes are given.

    A graph that is quantized already is proved once, as it is. One without static shapes can't be
    run, and a rule says so; it is not proved. What a proof shows to be no fault becomes a note.

    Args:
        file: with its external data next to it.
        target: the device.
        schemes: those to prove.
        progress: callback; gets each step.
        seconds: that a step of a proof may take.

    Returns:
        Findings, and the proofs.

    Raises:
        SurgeryError: X113, X121 and X122 where it can't be read, X101 to X107 where it can't be
            proved.
    """
    subject = subject_of(file)
    findings = list(lint_graph(subject, target))
    graph = live_graph(subject.model)
    if not schemes or not all(map(is_static, graph.inputs)):
        return findings, []
    quantized = any(True for _ in graph.of(*_QUANTIZED))
    schemes = ("fp16",) if quantized else schemes
    cases = list(_prove(file, subject, target, schemes, progress, seconds))
    if quantized:
        cases = [Case("", AS_WRITTEN, case.verdict, case.module_of) for case in cases]
    findings = [*overruled(findings, cases), *findings_on(file.name, "", cases, target)]
    return findings, [proof_of(case, file.name) for case in cases]


def _prove(
    file: Path,
    subject: GraphSubject,
    target: Target,
    schemes: Sequence[Scheme],
    progress: Callable[[str], None],
    seconds: float,
) -> Iterator[Case]:
    assert target.chip
    progress("find inputs on which its outputs say something")
    feeds, *samples = meaningful_inputs(file, live_graph(subject.model).inputs, 1 + _SAMPLES)
    for verdict in prove(
        file, feeds, samples, *target.chip, schemes, progress=progress, seconds=seconds
    ):
        yield Case("", verdict.scheme, verdict, lambda name: name)
