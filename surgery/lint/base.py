"""The base of rules: a module in `lint/rules` defines one, and nothing else has to know of it.

The docstring of a rule is its page: `surgery explain CODE` and docs/reference/rules print it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from surgery.diagnostics.diagnostic import Severity
from surgery.diagnostics.finding import Evidence, Finding
from surgery.npu.target import Fact, Target
from surgery.plugins import classes_in

if TYPE_CHECKING:
    from onnx_ir import Model, Node

    from surgery.plan.planner import Plan


@dataclass(frozen=True)
class PlanSubject:
    """What a rule on plans looks at.

    Args:
        plan: the recipe on its model; one without operations for a checkpoint alone.
        context: tokens of the key-value cache.
        scheme: how it is to be quantized on the device, such as `w4a16`.
    """

    plan: "Plan"
    context: int
    scheme: str


@dataclass(frozen=True)
class GraphSubject:
    """What a rule on graphs looks at.

    Args:
        model: the graph; its tensors may be without data.
        module_of: from a node to the full name of the module that made it, or the node's own name.
        key: the recipe's key that is to blame, such as `operations.experts`; empty for a file.
    """

    model: "Model"
    module_of: Callable[["Node"], str]
    key: str = ""


class Rule(ABC):
    """What every rule has."""

    code: ClassVar[str]
    """L and three digits."""

    name: ClassVar[str]
    """What `allow` names it by: words joined by hyphens."""

    evidence: ClassVar[Evidence]
    """How it is known."""

    known_by: ClassVar[str]
    """The source of the evidence, with version and date."""

    severity: ClassVar[Severity] = "error"
    """Unless the target says otherwise."""

    def finding(
        self,
        target: Target,
        what: str,
        *,
        why: str = "",
        fix: str = "",
        key: str = "",
        module: str = "",
        severity: Severity | None = None,
        fact: Fact[Any] | None = None,
        edit: tuple[str, str] | None = None,
    ) -> Finding:
        """Return a finding of this rule; see `Finding` for the fields.

        Args:
            target: the device it holds for; it may be more or less severe than the rule's own.
            what: one sentence without a full stop.
            why: the reason.
            fix: the remedy.
            key: of the recipe.
            module: full name of the module or node.
            severity: where it is not the rule's own.
            fact: of the target, where its evidence is what the finding stands on.
            edit: key and value, where one setting is the remedy; `--fix` writes it.
        """
        source = f"{fact.source}, {fact.date}" if fact else self.known_by
        return Finding(
            code=self.code,
            what=what,
            why=why,
            fix=fix,
            severity=target.severity(self.name, severity or self.severity),
            key=key,
            rule=self.name,
            target=target.name,
            evidence=fact.evidence if fact else self.evidence,
            known_by=source,
            module=module,
            edit=edit,
        )


class PlanRule(Rule):
    """A rule that needs a plan and no graph; it must not import torch."""

    @abstractmethod
    def check(self, subject: PlanSubject, target: Target) -> Iterable[Finding]:
        """Return what is wrong with the plan on the target."""


class GraphRule(Rule):
    """A rule that reads an ONNX graph."""

    @abstractmethod
    def check(self, subject: GraphSubject, target: Target) -> Iterable[Finding]:
        """Return what is wrong with the graph on the target."""


def known_rules() -> dict[str, Rule]:
    """Every rule by its name, found in the folder `surgery/lint/rules`, in the order of codes."""
    classes = classes_in("surgery.lint.rules", Rule)
    return {rule.name: rule for rule in sorted((cls() for cls in classes), key=lambda r: r.code)}
