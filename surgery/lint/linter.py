"""Lint one subject for one target as deep as is asked: its recipe, its graphs, or by compiler."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.diagnostics.finding import Finding
from surgery.lint.report import Proof, Report
from surgery.lint.rule_runner import SCHEME, lint_plan, settled
from surgery.lint.subject import Subject
from surgery.npu.target import Target
from surgery.plan.planner import Plan

if TYPE_CHECKING:
    from surgery.lint.graph_linter import Examined
    from surgery.npu.qualcomm.quantize import Scheme

Level = Literal["recipe", "graph", "prove"]
TIMEOUT: Final = 300.0
"""Seconds that compiling and running one graph may take, unless the user says otherwise."""
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Depth:
    """How deep, and for which use of the device.

    Args:
        level: `recipe` needs no torch, `graph` reads the graphs too, `prove` also compiles them.
        context: tokens of the key-value cache; where None, 4096 or what the model is made for.
        scheme: quantization; where None, memory is counted in the default and all are proved.
        trust_remote_code: whether a model may run code of its own.
        seconds: that a step of a proof may take; what takes longer is said not to be decided.
    """

    level: Level = "recipe"
    context: int | None = None
    scheme: "Scheme | None" = None
    trust_remote_code: bool = False
    seconds: float = TIMEOUT


def check_depth(targets: Iterable[Target], depth: Depth) -> None:
    """Refuse at once what could only fail later.

    Raises:
        SurgeryError: R126 for proof on a target without a compiler, X101 and X102 where the
            compiler is not here.
    """
    if depth.level != "prove":
        return
    for target in targets:
        if not target.chip:
            raise SurgeryError(_no_compiler(target))
    from surgery.npu.qualcomm.toolchain import toolchain

    toolchain()


def lint_subject(
    subject: Subject,
    targets: Sequence[Target],
    depth: Depth,
    progress: Progress = lambda step: None,
) -> list[Report]:
    """Lint, and report instead of raising where the subject itself is at fault.

    Args:
        subject: what to lint.
        targets: the devices.
        depth: how deep.
        progress: callback; gets each step when it begins; level 1 has none.

    Returns:
        One for each target.
    """
    try:
        if subject.kind == "graph":
            return [_of_file(Report(subject, t.name, "graph"), t, depth, progress) for t in targets]
        plan = subject.plan(trust_remote_code=depth.trust_remote_code)
        reports = [Report(subject, t.name, depth.level, plan.anatomy.source) for t in targets]
        return [
            _of_plan(report, plan, target, depth, progress)
            for report, target in zip(reports, targets, strict=True)
        ]
    except SurgeryError as error:
        level = "graph" if subject.kind == "graph" else depth.level
        return [Report(subject, t.name, level, errors=error.diagnostics) for t in targets]


def _of_plan(
    report: Report, plan: Plan, target: Target, depth: Depth, progress: Progress
) -> Report:
    scheme = depth.scheme or SCHEME
    findings = lint_plan(plan, target, context=depth.context, scheme=scheme)
    proofs: tuple[Proof, ...] = ()
    if depth.level != "recipe":
        from surgery.lint.graph_linter import Proving, lint_blocks

        proving = Proving(_schemes(depth), depth.seconds)
        trust = depth.trust_remote_code
        examined = lint_blocks(plan, target, proving, progress, trust_remote_code=trust)
        findings = _overruled(findings, plan, examined) + settled(plan, examined.findings)
        proofs = examined.proofs
    return replace(report, findings=tuple(findings), proofs=proofs)


def _overruled(findings: list[Finding], plan: Plan, examined: "Examined") -> list[Finding]:
    """Make notes of what is said of a family of models where its own blocks were looked at."""
    from surgery.lint.compiler_findings import noted
    from surgery.lint.rules.plan.moe_routing import MoeRouting, routes

    sources = {slot.source for slot in plan.depth}
    routed = {index for index in sources if routes(plan.anatomy.block(index))}
    if not routed & examined.sound or routed & examined.refused:
        return findings
    how = "compiled and computed right" if examined.proofs else "without what the compiler refuses"
    why = f"routed blocks became static graphs, {how}; all experts stay in memory"
    by = examined.proofs[0].toolchain if examined.proofs else "torch.export, asked by lint"
    return [
        noted(found, why, by) if found.rule == MoeRouting.name and not found.allowed else found
        for found in findings
    ]


def _of_file(report: Report, target: Target, depth: Depth, progress: Progress) -> Report:
    from surgery.lint.onnx_linter import lint_file

    assert report.subject.file is not None
    findings, proofs = lint_file(
        report.subject.file, target, _schemes(depth), progress, depth.seconds
    )
    named = (replace(found, subject=report.subject.name) for found in findings)
    level = "prove" if proofs else "graph"
    return replace(report, level=level, findings=tuple(named), proofs=tuple(proofs))


def _schemes(depth: Depth) -> "tuple[Scheme, ...]":
    """The schemes to prove; none below that level."""
    if depth.level != "prove":
        return ()
    return (depth.scheme,) if depth.scheme else ("fp16", "w8a16", "w4a16")


def _no_compiler(target: Target) -> Diagnostic:
    if target.compiler == "htp":
        return diagnostic("R126.no_chip", name=target.name)
    return diagnostic("R126.no_compiler", name=target.name, device=target.device)
