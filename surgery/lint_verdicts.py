"""What the compiler's verdicts on the graphs of one kind of block mean as findings.

The same answer in several phases and schemes is one finding.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from surgery.finding import Finding
from surgery.lint_report import Proof
from surgery.rules.compile_failed import CompileFailed
from surgery.rules.refused_by_compiler import RefusedByCompiler
from surgery.rules.wrong_numbers import WrongNumbers
from surgery.snapdragon.verdict import Verdict
from surgery.target import Target

_NAMED = 3


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
        cosine=verdict.cosine if errors else None,
        error=max(errors) if errors else None,
        context_bytes=verdict.context_bytes,
        seconds=sum(verdict.seconds.values()),
        toolchain=verdict.toolchain,
        blocks=blocks,
    )


def findings_on(form: str, key: str, cases: Sequence[Case], target: Target) -> Iterator[Finding]:
    """Return what the verdicts say is wrong.

    Args:
        form: the kind of block, or the file.
        key: of the recipe, which made it.
        cases: all its graphs in all schemes.
        target: the device.
    """
    for found in (*_refused(form, cases, target), *_failed(form, cases, target)):
        yield replace(found, key=key)
    wrong = [case for case in cases if _is_wrong(case.verdict)]
    if wrong:
        yield replace(_wrong(form, wrong, target), key=key)


def _refused(form: str, cases: Sequence[Case], target: Target) -> Iterator[Finding]:
    groups: dict[tuple[str, str], list[tuple[Case, str]]] = {}
    for case in cases:
        for node in case.verdict.refused:
            groups.setdefault((node.op, node.reason), []).append((case, node.node))
    for (op, reason), nodes in groups.items():
        case, first = nodes[0]
        where = _joined(str(case) for case, _ in nodes)
        finding = RefusedByCompiler().finding(
            target,
            f"`{form}`: the compiler refuses {op} {_listed([name for _, name in nodes])} ({where})",
            why=reason,
            fix="give it the static form of the operator; `surgery explain L300`",
            module=case.module_of(first),
        )
        yield replace(finding, known_by=case.verdict.toolchain)


def _failed(form: str, cases: Sequence[Case], target: Target) -> Iterator[Finding]:
    groups: dict[tuple[bool, str], list[Case]] = {}
    for case in cases:
        if case.verdict.error and not case.verdict.refused:
            groups.setdefault((case.verdict.accepted, case.verdict.error), []).append(case)
    for (compiled, error), failed in groups.items():
        how = "compiles and then doesn't run" if compiled else "doesn't compile"
        finding = CompileFailed().finding(
            target,
            f"`{form}` {how} ({_joined(map(str, failed))})",
            why=error,
            fix="see what the rules of `--graph` say; `surgery explain L302`",
        )
        yield replace(finding, known_by=failed[0].verdict.toolchain)


def _is_wrong(verdict: Verdict) -> bool:
    return verdict.accepted and not verdict.error and not verdict.passed


def _wrong(form: str, cases: Sequence[Case], target: Target) -> Finding:
    figures = [
        f"{case}: {name} has cosine {agreed.cosine:.6f}, greatest error {agreed.error:.2g}"
        for case in cases
        for name, agreed in case.verdict.agreement.items()
        if not agreed.is_enough
    ]
    finding = WrongNumbers().finding(
        target,
        f"`{form}` compiles and computes something else ({_joined(map(str, cases))})",
        why="; ".join(figures),
        fix="don't use it in this scheme on this device; `surgery explain L301`",
    )
    return replace(finding, known_by=cases[0].verdict.toolchain)


def _joined(words: Iterator[str]) -> str:
    return ", ".join(dict.fromkeys(words))


def _listed(names: list[str]) -> str:
    names = list(dict.fromkeys(names))
    shown = ", ".join(f"`{name}`" for name in names[:_NAMED])
    more = len(names) - _NAMED
    return f"{shown} and {more} more" if more > 0 else shown
