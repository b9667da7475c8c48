"""Lint: every rule on a plan, on the graphs of its blocks, or on an ONNX file."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

from surgery.diagnostics.finding import Finding
from surgery.lint.base import GraphRule, GraphSubject, PlanRule, PlanSubject, known_rules
from surgery.npu.memory_footprint import positions_of
from surgery.npu.target import Target, load_target
from surgery.plan.planner import Plan

CONTEXT: Final = 4096
"""Tokens of the key-value cache, unless the user says otherwise or the model takes fewer."""
SCHEME: Final = "w4a16"
"""What the paper quantizes the LLM to (arXiv 2503.06019, section 4.3)."""


def lint_plan(
    plan: Plan,
    target: Target | str | os.PathLike[str],
    *,
    context: int | None = None,
    scheme: str = SCHEME,
) -> list[Finding]:
    """Apply every rule that needs no graph.

    Args:
        plan: the recipe on its model.
        target: the device, or its name.
        context: tokens of the key-value cache; where None, `CONTEXT`, or as many as the model is
            made for where that is less.
        scheme: how the language model is quantized on the device.

    Returns:
        Findings in the order of their codes, each at its place in the recipe; those that the recipe
        allows are notes.

    Raises:
        SurgeryError: R121 where there is no such device.
    """
    device = load_target(target)
    usual = min(CONTEXT, positions_of(plan) or CONTEXT)
    subject = PlanSubject(plan, context or usual, scheme)
    rules = (rule for rule in known_rules().values() if isinstance(rule, PlanRule))
    return settled(plan, (found for rule in rules for found in rule.check(subject, device)))


def lint_graph(subject: GraphSubject, target: Target) -> Iterator[Finding]:
    """Apply every rule that reads a graph, in the order of codes."""
    for rule in known_rules().values():
        if isinstance(rule, GraphRule):
            yield from rule.check(subject, target)


def settled(plan: Plan, findings: Iterable[Finding]) -> list[Finding]:
    """Give findings the place that their key was written at, and make notes of what is allowed."""
    allowed = plan.recipe.allow
    named = [replace(found, subject=found.subject or plan.recipe.name) for found in findings]
    settled = [
        replace(found, severity="note", allowed=allowed[found.rule])
        if found.rule in allowed
        else found
        for found in named
    ]
    return [found for found in plan.recipe.locate(settled) if isinstance(found, Finding)]
