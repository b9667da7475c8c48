"""What the compiler's verdicts on the graphs of one kind of block mean as findings.

The same answer in several phases and schemes is one finding.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from surgery.diagnostics.diagnostic import some_of
from surgery.diagnostics.finding import Finding
from surgery.lint.report import Outcome, Proof
from surgery.lint.rules.compiler.compile_failed import CompileFailed
from surgery.lint.rules.compiler.refused_by_compiler import RefusedByCompiler
from surgery.lint.rules.compiler.wrong_numbers import WrongNumbers
from surgery.npu.qualcomm.verdict import Verdict
from surgery.npu.target import Target


@dataclass(frozen=True)
class Case:
    """One graph in one scheme.

    Args:
        phase: of the graph; empty for a file.
        scheme: what the user knows it by.
        verdict: the compiler's.
        module_of: from a node's name to the module that made it, empty where that isn't known.
    """

    phase: str
    scheme: str
    verdict: Verdict
    module_of: Callable[[str], str]

    def __str__(self) -> str:
        return f"{self.scheme} {self.phase}".strip()


def proof_of(case: Case, form: str, blocks: int = 0) -> Proof:
    """One row of the table of proofs."""
    verdict = case.verdict
    errors = [found.error for found in verdict.agreement.values()]
    return Proof(
        form=form,
        phase=case.phase,
        scheme=case.scheme,
        passed=verdict.passed,
        outcome=_outcome(verdict),
        cosine=verdict.cosine if errors else None,
        error=max(errors) if errors else None,
        context_bytes=verdict.context_bytes,
        seconds=sum(verdict.seconds.values()),
        toolchain=verdict.toolchain,
        blocks=blocks,
    )


def _outcome(verdict: Verdict) -> Outcome:
    if verdict.works:
        return "proved" if verdict.passed else "near"
    return "undecided" if verdict.late else "failed"


def overruled(findings: Iterable[Finding], cases: Sequence[Case]) -> list[Finding]:
    """Make notes of errors that a proof of the very graph shows to be none.

    What is known of operators is a table, and the compiler has the last word. Warnings stay: they
    are about what the graph costs.

    Args:
        findings: of rules that read the graph, or judged what it is made of.
        cases: the graph's, in all schemes that were tried.
    """
    proofs = [case for case in cases if case.verdict.works]
    if not proofs:
        return list(findings)
    where = _joined(map(str, proofs))
    why = f"the compiler took this very graph, and its outputs agree ({where}): the proof counts"
    by = proofs[0].verdict.toolchain
    return [noted(found, why, by) if found.severity == "error" else found for found in findings]


def noted(found: Finding, why: str, by: str) -> Finding:
    """A finding that is none after all, with what shows that."""
    return replace(found, severity="note", why=why, fix="", evidence="proved", known_by=by)


def findings_on(form: str, key: str, cases: Sequence[Case], target: Target) -> Iterator[Finding]:
    """Return what the verdicts say is wrong.

    Args:
        form: the kind of block, or the file.
        key: of the recipe, which made it.
        cases: all its graphs in all schemes.
        target: the device.
    """
    for found in (
        *_refused(form, cases, target),
        *_failed(form, cases, target),
        *_wrong(form, cases, target),
        *_inconclusive(form, cases, target),
    ):
        yield replace(found, key=key, known_by=cases[0].verdict.toolchain)


def _refused(form: str, cases: Sequence[Case], target: Target) -> Iterator[Finding]:
    groups: dict[tuple[str, str], list[tuple[Case, str]]] = {}
    for case in cases:
        for node in case.verdict.refused:
            groups.setdefault((node.op, node.reason), []).append((case, node.node))
    for (op, reason), nodes in groups.items():
        case, first = nodes[0]
        where = _joined(str(case) for case, _ in nodes)
        yield RefusedByCompiler().finding(
            target,
            f"`{form}`: the compiler refuses {op} {_listed([name for _, name in nodes])} ({where})",
            why=reason,
            fix="give it the static form of the operator; `surgery explain L300`",
            module=case.module_of(first),
        )


def _failed(form: str, cases: Sequence[Case], target: Target) -> Iterator[Finding]:
    groups: dict[tuple[bool, bool, str], list[Case]] = {}
    for case in cases:
        found = case.verdict
        if found.error and not found.refused:
            groups.setdefault((found.late, found.accepted, found.error), []).append(case)
    for (late, compiled, error), failed in groups.items():
        how = "compiles and then doesn't run" if compiled else "doesn't compile"
        yield CompileFailed().finding(
            target,
            f"`{form}` {'is not decided' if late else how} ({_joined(map(str, failed))})",
            why=error,
            fix="give it more by `--timeout SECONDS`"
            if late
            else "see what the rules of `--graph` say; `surgery explain L302`",
            severity="warning" if late else None,
        )


def _wrong(form: str, cases: Sequence[Case], target: Target) -> Iterator[Finding]:
    ran = [case for case in cases if case.verdict.accepted and not case.verdict.error]
    wrong = [case for case in ran if not case.verdict.works]
    near = [case for case in ran if case.verdict.works and not case.verdict.passed]
    if wrong:
        yield WrongNumbers().finding(
            target,
            f"`{form}` compiles and computes something else ({_joined(map(str, wrong))})",
            why=_figures(wrong),
            fix="don't use it in this scheme on this device; `surgery explain L301`",
        )
    if near:
        yield WrongNumbers().finding(
            target,
            f"`{form}` is off by more than most graphs are ({_joined(map(str, near))})",
            why=_figures(near),
            fix="compare it on inputs of your own before you use it; `surgery explain L301`",
            severity="warning",
        )


def _figures(cases: Sequence[Case]) -> str:
    return "; ".join(
        f"{case}: {name} has cosine {agreed.cosine:.6f}, greatest error {agreed.error:.2g}, "
        f"{100 * agreed.relative:.2g} % of its range"
        for case in cases
        for name, agreed in case.verdict.agreement.items()
        if not agreed.is_enough
    )


def _inconclusive(form: str, cases: Sequence[Case], target: Target) -> Iterator[Finding]:
    silent = [case for case in cases if case.verdict.is_inconclusive]
    if silent:
        yield WrongNumbers().finding(
            target,
            f"`{form}` compiles and runs, and its outputs show nothing "
            f"({_joined(map(str, silent))})",
            why="on the inputs that were tried, every output is below fp16's smallest normal value",
            fix="compare it on inputs of your own",
            severity="note",
        )


def _joined(words: Iterator[str]) -> str:
    return ", ".join(dict.fromkeys(words))


def _listed(names: list[str]) -> str:
    return some_of([f"`{name}`" for name in dict.fromkeys(names)])
