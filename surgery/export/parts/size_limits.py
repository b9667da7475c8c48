"""Refuse parts that are larger than one graph may be on the device."""

from typing import Final

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.npu.target import Target
from surgery.plan.planner import Plan

_FLOAT_BYTES: Final = 4


def refuse_large_parts(plan: Plan, target: Target | None) -> None:
    """Refuse a model whose largest part in fp32 is over the limit; nothing is read.

    Args:
        plan: its blocks and its head become parts.
        target: the device, if one is named.

    Raises:
        SurgeryError: A618.
    """
    anatomy = plan.anatomy
    head = anatomy.names_in("head") or anatomy.names_in("embeddings")
    sizes = {f"block.{i}": anatomy.block(i).parameters for i in range(anatomy.count)}
    vision = (*anatomy.names_in("vision"), *anatomy.names_in("projector"))
    sizes["vision"] = sum(anatomy.sizes.get(name, 0) for name in vision)
    sizes["head"] = sum(anatomy.sizes[name] for name in head)
    part = max(sizes, key=lambda name: sizes[name])
    refuse_large(part, _FLOAT_BYTES * sizes[part], target)


def refuse_large(part: str, size: int, target: Target | None) -> None:
    """Refuse a part that is over the limit.

    Args:
        part: its name.
        size: in bytes.
        target: the device, if one is named.

    Raises:
        SurgeryError: A618.
    """
    limit = target.limits.graph_bytes if target else None
    if target and limit and size > limit.value:
        raise SurgeryError(
            diagnostic(
                "A618",
                part=part,
                size=size,
                device=target.device,
                value=limit.value,
                source=limit.source,
            )
        )
