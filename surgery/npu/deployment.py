"""What a recipe costs on a phone compared with its peers, and with what the paper measured on one.

Nothing here was measured on a phone; table 9 of the paper was.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from surgery.diagnostics.diagnostic import SurgeryError
from surgery.npu.device_cost import SCHEME, Cost, costs_of
from surgery.npu.target import Target, load_target
from surgery.plan.planner import Plan, plan_recipe
from surgery.recipe.loading import load_recipe
from surgery.recipe.schema import Recipe

CONTEXT: Final = 2048
"""Tokens of the cache in the paper's table 9."""

PEERS: Final = ("full_finetune", "lora", "cogvlm_skip", "genieblue_skip")
"""The packaged recipes that any recipe is compared with."""

_PAPER_MODEL: Final = ("builtin/bluelm-3b", "builtin/siglip-so400m-patch14-384")
_PAPER_DEVICE: Final = "snapdragon-8-elite"
_GB: Final = 1e9


@dataclass(frozen=True)
class Measured:
    """A row of the paper's table 9: iQOO 13, Snapdragon 8 Elite, 2048 tokens, multimodal path.

    Args:
        model: the paper's name.
        storage: bytes.
        memory: bytes.
        speed: tokens a second while decoding.
        arithmetic: the same model by our arithmetic.
    """

    model: str
    storage: float
    memory: float
    speed: float
    arithmetic: Cost


@dataclass(frozen=True)
class Deployment:
    """A recipe and its peers on one device.

    Args:
        model: the base.
        target: the device's name.
        context: tokens of the cache.
        bandwidth: bytes a second, or None.
        costs: row by row.
        measured: the paper's rows, each with ours.
        disagreements: where the two differ, in sentences.
        left_out: peers that can't be planned on this model, and why.
    """

    model: str
    target: str
    context: int
    bandwidth: float | None
    costs: Sequence[Cost]
    measured: Sequence[Measured]
    disagreements: Sequence[str]
    left_out: Mapping[str, str]

    def document(self) -> dict[str, Any]:
        """The deployment as plain data."""
        return {**asdict(self), "scheme": SCHEME}


def deployment(
    plan: Plan, target: Target | str | os.PathLike[str], context: int = CONTEXT
) -> Deployment:
    """Count a recipe and its peers on one model and one device.

    Args:
        plan: the recipe's.
        target: the device, or its name.
        context: tokens of the cache.

    Raises:
        SurgeryError: R121 where there is no such device.
    """
    target = load_target(target)
    fact = target.limits.bandwidth_bytes
    bandwidth = fact.value if fact else None
    peers, left_out = _peers(plan)
    measured = _measured()
    return Deployment(
        model=plan.anatomy.source,
        target=target.name,
        context=context,
        bandwidth=bandwidth,
        costs=[cost for peer in peers for cost in costs_of(peer, context, bandwidth)],
        measured=measured,
        disagreements=_disagreements(measured),
        left_out=left_out,
    )


def _peers(plan: Plan) -> tuple[list[Plan], dict[str, str]]:
    """The plan and the packaged recipes on its model; and those that don't go on it, with why."""
    own = plan.recipe.name
    planned = {own: plan}
    left_out: dict[str, str] = {}
    for name in PEERS:
        try:
            planned[name] = planned.get(name) or plan_recipe(
                load_recipe(name, _model_of(plan.recipe))
            )
        except SurgeryError as error:
            left_out[name] = error.diagnostics[0].what
    order = [own, *PEERS] if own not in PEERS else [*PEERS]
    return [planned[name] for name in order if name in planned], left_out


def _model_of(recipe: Recipe) -> list[str]:
    """The overrides that put another recipe on the same model."""
    overrides = [f'model="{recipe.model}"']
    overrides += [f'revision="{recipe.revision}"'] if recipe.revision else []
    if recipe.vision:
        overrides += [f'vision="{recipe.vision}"', f"projector={recipe.projector}"]
    return overrides


def _measured() -> list[Measured]:
    """The paper's rows; its model before it had GenieBlue is that one trained in full."""
    text, vision = _PAPER_MODEL
    fact = load_target(_PAPER_DEVICE).limits.bandwidth_bytes
    bandwidth = fact.value if fact else None
    overrides = [f"model={text}", f"vision={vision}", "projector=mlp_downsample"]
    plans = [
        plan_recipe(load_recipe(name, overrides)) for name in ("full_finetune", "genieblue_skip")
    ]
    full, genieblue = (costs_of(plan, CONTEXT, bandwidth) for plan in plans)
    return [
        Measured("BlueLM-V-3B", 1.77e9, 1.73e9, 33.0, full[1]),
        Measured("GenieBlue", 1.92e9, 2.10e9, 31.0, genieblue[0]),
    ]


def _disagreements(measured: Sequence[Measured]) -> list[str]:
    before, after = measured
    pairs = {
        "storage": (after.storage - before.storage, "storage"),
        "memory": (after.memory - before.memory, "multimodal_memory"),
    }
    found = []
    for name, (printed, field) in pairs.items():
        ours = getattr(after.arithmetic, field) - getattr(before.arithmetic, field)
        found.append(
            f"{name}: the paper's table has {printed / _GB:+.2f} GB for GenieBlue, the sum of its "
            f"parts is {ours / _GB:+.2f} GB"
        )
    found[0] += "; eight copied blocks at 4 bits are more than what the table adds"
    found[1] += (
        "; copies take their originals' place, so that only LoRA is more. The table fits neither "
        f"that nor both held at once ({(_both(after) - _total(before)) / _GB:+.2f} GB)"
    )
    for row in measured:
        bound = row.arithmetic.multimodal_speed
        if bound:
            found.append(
                f"speed: {row.model} decodes {row.speed:.0f} tokens/s in the table, "
                f"{100 * row.speed / bound:.0f} % of the bound"
            )
    return found


def _both(row: Measured) -> int:
    """Memory where originals and copies are both in memory."""
    cost = row.arithmetic
    return cost.storage + cost.text_memory - cost.text_load


def _total(row: Measured) -> int:
    return row.arithmetic.multimodal_memory
