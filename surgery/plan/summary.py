"""A plan in one line: added, trained and frozen parameters."""

from typing import TYPE_CHECKING

from surgery.diagnostics.wording import counted

if TYPE_CHECKING:
    from surgery.plan.planner import Plan


def summary_line(plan: "Plan") -> str:
    """Return the last line of `surgery plan`, which the model card repeats."""
    removed = f"{plan.removed:,} removed, " if plan.removed else ""
    return (
        f"Plan: {_changes(plan)}. +{plan.added:,} parameters added, {removed}"
        f"{plan.trainable:,} trainable, {plan.total - plan.trainable:,} frozen."
    )


def _changes(plan: "Plan") -> str:
    changes = []
    if plan.swaps():
        changes.append(f"{counted(len(plan.swaps()), 'block')} copied")
    if plan.part_swaps():
        changes.append(" and ".join(edit.operation for edit in plan.part_swaps()) + " copied")
    if plan.experts():
        changes.append(f"{counted(len(plan.experts()), 'block')} with experts")
    if plan.learners():
        changes.append(f"{counted(len(plan.learners()), 'block')} with learners")
    if plan.loras():
        changes.append(f"LoRA on {counted(len(plan.loras()), 'matrix', 'matrices')}")
    if plan.changes_depth:
        return (
            f"{counted(plan.anatomy.count, 'block')} become {len(plan.depth)} in a plain checkpoint"
        )
    if plan.in_place:
        changes.append("base trained in place (its text path is the stored original)")
    return ", ".join(changes)


def human_bytes(count: int) -> str:
    """Bytes in decimal units with three digits, such as `1.43 GB`."""
    units = ("B", "kB", "MB", "GB", "TB")
    power = min((len(str(count)) - 1) // 3, len(units) - 1)
    return f"{count / 1000**power:.3g} {units[power]}"
