"""Levels 2 and 3 on an ONNX file that somebody else made."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from surgery.finding import Finding
from surgery.lint import lint_graph
from surgery.lint_report import Proof
from surgery.lint_verdicts import Case, findings_on, proof_of
from surgery.onnx_file import subject_of
from surgery.rule import GraphSubject
from surgery.snapdragon.prove import prove
from surgery.snapdragon.quantise import Scheme
from surgery.target import Target

if TYPE_CHECKING:
    from onnx_ir import Graph, Value

    Arrays = dict[str, np.ndarray[Any, Any]]

_QUANTISED: Final = ("QuantizeLinear", "DequantizeLinear")
_SAMPLES: Final = 2
AS_WRITTEN: Final = "as written"
"""The scheme of a graph that is quantised already."""


def lint_file(
    file: Path, target: Target, schemes: Sequence[Scheme], tell: Callable[[str], None]
) -> tuple[list[Finding], list[Proof]]:
    """Apply every rule on graphs to an ONNX file, and prove it where schemes are given.

    A graph that is quantised already is proved once, as it is. One without static shapes can't be
    run, and a rule says so; it is not proved.

    Args:
        file: with its external data beside it.
        target: the device.
        schemes: those to prove.
        tell: told of each step.

    Returns:
        Findings, and the proofs.

    Raises:
        SurgeryError: X121 and X122 where it can't be read, X101 to X107 where it can't be proved.
    """
    subject = subject_of(file)
    findings = list(lint_graph(subject, target))
    graph = subject.model.graph
    if not schemes or not all(_is_static(value) for value in graph.inputs):
        return findings, []
    quantised = any(node.op_type in _QUANTISED for node in graph)
    cases = list(_prove(file, subject, target, ("fp16",) if quantised else schemes, tell))
    if quantised:
        cases = [Case("", AS_WRITTEN, case.verdict, case.module_of) for case in cases]
    findings += findings_on(file.name, "", cases, target)
    return findings, [proof_of(case, file.name) for case in cases]


def _prove(
    file: Path,
    subject: GraphSubject,
    target: Target,
    schemes: Sequence[Scheme],
    tell: Callable[[str], None],
) -> Iterator[Case]:
    assert target.chip
    graph = subject.model.graph
    modules = {node.name: subject.module_of(node) for node in graph}
    samples = [_drawn(graph, seed) for seed in range(1 + _SAMPLES)]
    for verdict in prove(file, samples[0], samples[1:], *target.chip, schemes, progress=tell):
        yield Case("", verdict.scheme, verdict, lambda name: modules.get(name, ""))


def _is_static(value: "Value") -> bool:
    return value.shape is not None and all(isinstance(size, int) for size in value.shape)


def _drawn(graph: "Graph", seed: int) -> "Arrays":
    """Inputs of a graph by name: normal numbers, and 0 or 1 where whole ones are taken."""
    generator = np.random.default_rng(seed)
    return {str(value.name): _array(value, generator) for value in graph.inputs}


def _array(value: "Value", generator: np.random.Generator) -> "np.ndarray[Any, Any]":
    assert value.shape is not None
    assert value.dtype is not None
    shape = tuple(int(str(size)) for size in value.shape)
    kind = value.dtype.numpy()
    if value.dtype.is_floating_point():
        return generator.standard_normal(shape).astype(kind)
    return generator.integers(0, 2, shape).astype(kind)
