"""What rules share that judge one node at a time."""

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from surgery.diagnostics.diagnostic import Severity, some_of
from surgery.diagnostics.finding import Finding
from surgery.lint.base import GraphRule, GraphSubject
from surgery.lint.onnx.live_nodes import LiveGraph, live_graph
from surgery.npu.target import Fact, Target

if TYPE_CHECKING:
    from onnx_ir import Node, Value

TOOLCHAIN: Final = "onnxruntime-qnn 2.7.0 (QAIRT 2.51.0), soc 43, 57, 69 and 87, 2026-11-22"
"""The compiler that was asked, on every case of tests/rules/graph for each chip."""

MOE_OPERATORS: Final = ("com.microsoft::MoE", "com.microsoft::QMoE")
"""Mixtures of experts as one operator, which onnxruntime's model builder writes."""


@dataclass(frozen=True)
class Fault:
    """One place that is wrong; those that differ in the place alone become one finding.

    Args:
        location: a node, or an input of the graph.
        what: one sentence without a full stop, the same for all such nodes.
        why: where it is not the rule's own.
        fix: where it is not the rule's own.
        severity: where it is not the rule's own.
        fact: of the target, where the finding stands on it.
    """

    location: "Node | Value"
    what: str
    why: str = ""
    fix: str = ""
    severity: Severity | None = None
    fact: Fact[Any] | None = None


class NodeRule(GraphRule):
    """A rule that looks at nodes, joins equal faults, and names the modules."""

    compilers: ClassVar[tuple[str, ...]] = ("htp",)
    """The compilers that it holds for; what one refuses says nothing about another."""

    known_by: ClassVar[str] = TOOLCHAIN

    why: ClassVar[str] = ""
    """The reason, where a fault gives none."""

    fix: ClassVar[str] = ""
    """The remedy, where a fault gives none."""

    @abstractmethod
    def faults(self, graph: LiveGraph, target: Target) -> Iterable[Fault]:
        """Return every place that is wrong, in the order of the graph."""

    def check(self, subject: GraphSubject, target: Target) -> Iterable[Finding]:
        """Return one finding for all faults that say the same; see `GraphRule.check`."""
        if target.compiler not in self.compilers:
            return
        groups: dict[tuple[str, str], list[Fault]] = {}
        for fault in self.faults(live_graph(subject.model), target):
            groups.setdefault((fault.what, fault.why), []).append(fault)
        for faults in groups.values():
            yield self._joined(faults, subject, target)

    def _joined(self, faults: Sequence[Fault], subject: GraphSubject, target: Target) -> Finding:
        first = faults[0]
        names = [_name(fault.location, subject) for fault in faults]
        return self.finding(
            target,
            f"{first.what}{_listed(names)}",
            why=first.why or self.why,
            fix=first.fix or self.fix,
            key=subject.key,
            module=names[0],
            severity=first.severity,
            fact=first.fact,
        )


def _name(location: "Node | Value", subject: GraphSubject) -> str:
    from onnx_ir import Node

    if not isinstance(location, Node):
        return location.name or ""
    return subject.module_of(location) or location.name or location.op_type


def _listed(names: list[str]) -> str:
    """How many there are and the first of them, where there is more than one."""
    if len(names) == 1:
        return ""
    return f" ({len(names)} times: {some_of(list(dict.fromkeys(names)))})"
