"""The difference of two plans on one model."""

from typing import Any

from surgery.plan.planner import Plan
from surgery.plan.serialization import FORMAT_VERSION


def changed_blocks(plan: Plan) -> dict[int, str]:
    """A summary of a plan's changes to each changed block."""
    changes: dict[int, dict[str, int]] = {}
    for edit in (edit for edit in plan.edits if edit.block >= 0):
        counts = changes.setdefault(edit.block, {})
        counts[edit.op] = counts.get(edit.op, 0) + edit.parameters
    for block in range(plan.anatomy.count):
        trained = plan.trained_in[block]
        if trained:
            changes.setdefault(block, {})["train"] = trained
    return {
        block: ", ".join(f"{op} {count:,}" for op, count in counts.items())
        for block, counts in sorted(changes.items())
    }


def difference_document(first: Plan, second: Plan) -> dict[str, Any]:
    """Return the difference as plain data: blocks that differ, and both plans' counts."""
    a, b = changed_blocks(first), changed_blocks(second)
    return {
        "format_version": FORMAT_VERSION,
        "model": first.anatomy.source,
        "recipes": [first.recipe.name, second.recipe.name],
        "blocks": [
            {"block": i, "first": a.get(i), "second": b.get(i)}
            for i in range(first.anatomy.count)
            if a.get(i) != b.get(i)
        ],
        "parameters": [
            {"base": p.base, "added": p.added, "trainable": p.trainable} for p in (first, second)
        ],
    }
