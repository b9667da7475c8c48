"""Levels 2 and 3: the graph of each distinct kind of block, read by rules and proved by compiler.

Only what is asked for it imports this module.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from surgery.diagnostic import Diagnostic, SurgeryError
from surgery.edit import AddExpert
from surgery.finding import Finding
from surgery.graph.file import save
from surgery.graph.form import BlockForm, Shape
from surgery.graph.onnx_graph import module_of
from surgery.graph.traced import Traced
from surgery.graph.tracer import Tracer
from surgery.lint import lint_graph
from surgery.lint_report import Proof
from surgery.lint_verdicts import Case, findings_on, proof_of
from surgery.plan import Plan
from surgery.rule import GraphSubject
from surgery.rules.not_traceable import NotTraceable
from surgery.snapdragon.prove import prove
from surgery.snapdragon.quantise import Scheme
from surgery.target import Target

SHAPES: Final = (Shape("prefill", 16, 64), Shape("decode", 1, 64))
"""Small ones: what compiles is a matter of the form and not of these numbers."""
IMAGE: Final = Shape("prefill", 1, 0)
"""Of a vision tower's block and a projector, which take one image whatever this says."""
RUNS: Final = ((4, 12),)
"""Where an image stands in a prompt of segments, if the recipe doesn't say."""
SAMPLES: Final = 2
"""Inputs by which a quantiser finds ranges."""
_UNEXAMINED: Final = "X111"
Tell = Callable[[str], None]


def lint_blocks(
    plan: Plan,
    target: Target,
    schemes: Sequence[Scheme],
    tell: Tell,
    *,
    trust_remote_code: bool = False,
) -> tuple[list[Finding], list[Proof]]:
    """Trace one block of each kind, prefill and decode, and apply every rule on graphs.

    Args:
        plan: what is deployed.
        target: the device.
        schemes: those to prove; none for level 2.
        tell: told of each step.
        trust_remote_code: whether the model may run code of its own.

    Returns:
        Findings, each one once, whose places are still to be filled in; and the proofs.

    Raises:
        SurgeryError: M where the model can't be built, X where the compiler can't be asked.
    """
    tell("build the model without weights")
    tracer = Tracer(_with_layout(plan), trust_remote_code=trust_remote_code)
    findings: list[Finding] = []
    proofs: list[Proof] = []
    for form in tracer.forms:
        cases: list[Case] = []
        for shape in _shapes(form):
            step = f"{form.name}, {shape.phase}" if form.blocks else form.name
            tell(f"{step}: trace")
            try:
                traced = tracer.trace(form, shape, weights="random" if schemes else "none")
            except SurgeryError as error:
                findings += [_not_traceable(d, form, target) for d in error.diagnostics]
                continue
            findings += lint_graph(_subject(traced, form), target)
            if schemes:
                cases += _prove(traced, target, schemes, partial(_tell_step, tell, step))
        findings += findings_on(form.name, form.key, cases, target)
        proofs += [proof_of(case, form.name, len(form.blocks)) for case in cases]
    return _once(findings), proofs


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


def _tell_step(tell: Tell, graph: str, step: str) -> None:
    tell(f"{graph}: {step}")


def _subject(traced: Traced, form: BlockForm) -> GraphSubject:
    return GraphSubject(traced.model, module_of, form.key)


def _not_traceable(said: Diagnostic, form: BlockForm, target: Target) -> Finding:
    if said.code not in ("X110", _UNEXAMINED):
        raise SurgeryError(said)
    return NotTraceable().finding(
        target,
        said.what,
        why=said.why,
        fix=said.fix,
        key=said.key or form.key,
        module=form.place,
        severity="warning" if said.code == _UNEXAMINED else "error",
    )


def _prove(traced: Traced, target: Target, schemes: Sequence[Scheme], tell: Tell) -> Iterator[Case]:
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
            schemes,
            expected=traced.run(feeds),
            progress=tell,
        ):
            yield Case(
                traced.shape.phase, verdict.scheme, verdict, lambda name: modules.get(name, "")
            )


def _once(findings: list[Finding]) -> list[Finding]:
    """Leave out what an earlier phase said already."""
    return list({_mark(found): found for found in reversed(findings)}.values())[::-1]


def _mark(found: Finding) -> tuple[str, ...]:
    """What makes two findings the same; what `not-traceable` says names the phase."""
    said = "" if found.rule == NotTraceable.name else found.what
    return found.code, found.key, found.module, found.why, said
