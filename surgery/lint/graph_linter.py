"""Levels 2 and 3: the graph of each distinct kind of block, read by rules and proved by compiler.

Only what is asked for it imports this module.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final, Literal

from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.diagnostics.finding import Finding
from surgery.graphs.block.forms import BlockForm, Shape
from surgery.graphs.block.trace_errors import depends_on_data
from surgery.graphs.block.traced import Traced
from surgery.graphs.block.tracer import Tracer
from surgery.graphs.torch_export import module_of
from surgery.graphs.writer import save
from surgery.lint.base import GraphSubject
from surgery.lint.compiler_findings import Case, findings_on, overruled, proof_of
from surgery.lint.report import Proof
from surgery.lint.rule_runner import lint_graph
from surgery.lint.rules.graph.not_traceable import NotTraceable
from surgery.npu.qualcomm.prove import prove
from surgery.npu.qualcomm.quantize import Scheme
from surgery.npu.qualcomm.workers.process import LIMIT
from surgery.npu.target import Target
from surgery.operations.edits import AddExpert
from surgery.plan.planner import Plan

SHAPES: Final = (Shape("prefill", 16, 64), Shape("decode", 1, 64))
"""Small ones: what compiles is a matter of the form and not of these numbers."""
IMAGE: Final = Shape("prefill", 1, 0)
"""Of a vision tower's block and a projector, which take one image whatever this says."""
RUNS: Final = ((4, 12),)
"""Where an image stands in a prompt of segments, if the recipe doesn't say."""
SAMPLES: Final = 2
"""Inputs by which a quantizer finds ranges."""
_UNEXAMINED: Final = "X111"
Progress = Callable[[str], None]
Answer = Literal["sound", "refused", "unknown"]


@dataclass(frozen=True)
class Examined:
    """What the graphs of a plan's blocks showed.

    Args:
        findings: each one once; their places are still to be filled in.
        proofs: of every graph that was compiled.
        sound: blocks of the base, by position, whose graphs are all made and without an error.
        refused: those that the compiler refuses, or that depend on the data; in neither is what has
            no graph for another reason, such as complex numbers.
    """

    findings: tuple[Finding, ...]
    proofs: tuple[Proof, ...]
    sound: frozenset[int]
    refused: frozenset[int]


@dataclass(frozen=True)
class Proving:
    """What is asked of the compiler.

    Args:
        schemes: those to prove; none for level 2.
        seconds: that a step may take.
    """

    schemes: Sequence[Scheme] = ()
    seconds: float = LIMIT


def lint_blocks(
    plan: Plan,
    target: Target,
    proving: Proving,
    progress: Progress,
    *,
    trust_remote_code: bool = False,
) -> Examined:
    """Trace one block of each kind, prefill and decode, and apply every rule on graphs.

    Args:
        plan: what is deployed.
        target: the device.
        proving: what is asked of its compiler.
        progress: callback; gets each step.
        trust_remote_code: whether the model may run code of its own.

    Raises:
        SurgeryError: M where the model can't be built, X where the compiler can't be asked.
    """
    progress("build the model without weights")
    tracer = Tracer(_with_layout(plan), trust_remote_code=trust_remote_code)
    findings: list[Finding] = []
    proofs: list[Proof] = []
    blocks: dict[Answer, set[int]] = {"sound": set(), "refused": set(), "unknown": set()}
    for form in tracer.forms:
        found, cases, answer = _lint_form(tracer, form, target, proving, progress)
        blocks[answer].update(form.blocks)
        findings += found
        proofs += [proof_of(case, form.name, len(form.blocks)) for case in cases]
    sound = blocks["sound"] - blocks["refused"] - blocks["unknown"]
    return Examined(
        tuple(_once(findings)), tuple(proofs), frozenset(sound), frozenset(blocks["refused"])
    )


def _lint_form(
    tracer: Tracer, form: BlockForm, target: Target, proving: Proving, progress: Progress
) -> tuple[list[Finding], list[Case], Answer]:
    """Findings, the compiler's verdicts, and what they mean for the blocks of the form."""
    findings: list[Finding] = []
    every: list[Case] = []
    answer: Answer = "sound"
    for shape in _shapes(form):
        step = f"{form.name}, {shape.phase}" if form.blocks else form.name
        progress(f"{step}: trace")
        try:
            traced = tracer.trace(form, shape, weights="random" if proving.schemes else "none")
        except SurgeryError as error:
            findings += [_not_traceable(d, form, target) for d in error.diagnostics]
            by_data = any(depends_on_data(d.why) for d in error.diagnostics)
            answer = "refused" if by_data or answer == "refused" else "unknown"
            continue
        cases = list(_prove(traced, target, proving, partial(_report_step, progress, step)))
        findings += overruled(lint_graph(_subject(traced, form), target), cases)
        every += cases
    findings += findings_on(form.name, form.key, every, target)
    faulty = any(f.severity == "error" and f.rule != NotTraceable.name for f in findings)
    return findings, every, "refused" if faulty else answer


def _with_layout(plan: Plan) -> Plan:
    """Let segments without `runs` have some, as each deployed graph would: rule L105 says so."""
    edits = tuple(
        replace(edit, rule=replace(edit.rule, runs=RUNS))
        if isinstance(edit, AddExpert) and edit.rule.form == "segments" and not edit.rule.runs
        else edit
        for edit in plan.edits
    )
    return replace(plan, edits=edits)


def _shapes(form: BlockForm) -> list[Shape]:
    return [s for s in SHAPES if s.phase in form.phases] if form.blocks else [IMAGE]


def _report_step(progress: Progress, graph: str, step: str) -> None:
    progress(f"{graph}: {step}")


def _subject(traced: Traced, form: BlockForm) -> GraphSubject:
    return GraphSubject(traced.model, module_of, form.key)


def _not_traceable(diagnostic: Diagnostic, form: BlockForm, target: Target) -> Finding:
    if diagnostic.code not in ("X110", _UNEXAMINED):
        raise SurgeryError(diagnostic)
    return NotTraceable().finding(
        target,
        diagnostic.what,
        why=diagnostic.why,
        fix=diagnostic.fix,
        key=diagnostic.key or form.key,
        module=form.module_path,
        severity="warning" if diagnostic.code == _UNEXAMINED else "error",
    )


def _prove(traced: Traced, target: Target, proving: Proving, progress: Progress) -> Iterator[Case]:
    if not proving.schemes:
        return
    assert target.chip
    feeds = traced.sample()
    samples = [traced.sample(seed) for seed in range(1, 1 + SAMPLES)]
    modules = {node.name: module_of(node) for node in traced.model.graph}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "block.onnx"
        save(traced.model, file, large=0)  # mapped by those who read it, and not copied
        for verdict in prove(
            file,
            feeds,
            samples,
            *target.chip,
            proving.schemes,
            expected=traced.run(feeds),
            progress=progress,
            seconds=proving.seconds,
        ):
            yield Case(
                traced.shape.phase, verdict.scheme, verdict, lambda name: modules.get(name, "")
            )


def _once(findings: list[Finding]) -> list[Finding]:
    """Leave out what an earlier phase said already."""
    return list({_identity(found): found for found in reversed(findings)}.values())[::-1]


def _identity(found: Finding) -> tuple[str, ...]:
    """What makes two findings the same; what `not-traceable` says names the phase."""
    diagnostic = "" if found.rule == NotTraceable.name else found.what
    return found.code, found.key, found.module, found.why, diagnostic
