"""Learning rates of a stage: by the names of `train`, and layer by layer in a vision tower."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from surgery.adapter.apply import trainable_parameters
from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.operations.edits import PEFT_PREFIX
from surgery.plan.part_copies import in_copies
from surgery.plan.planner import Plan
from surgery.plan.planner import PlannedStage as Trained
from surgery.plan.selection import Matcher, Selection
from surgery.recipe.training_schema import Stage
from surgery.storage.file_names import ADAPTER

if TYPE_CHECKING:
    from torch import nn

_BLOCK: Final = re.compile(r"\.(\d+)\.")


def parameter_groups(
    named: Iterable[tuple[str, Any]], rates: Mapping[str, float], weight_decay: float
) -> list[dict[str, Any]]:
    """Group parameters for an optimizer by learning rate and weight decay.

    Args:
        named: Parameters by name.
        rates: Peak learning rate of each parameter that trains; others are left out.
        weight_decay: Weight decay of matrices; vectors, which are norms and biases, have none.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in named:
        if name not in rates:
            continue
        key = (rates[name], weight_decay if parameter.ndim > 1 else 0.0)
        group = groups.setdefault(key, {"params": [], "lr": key[0], "weight_decay": key[1]})
        group["params"].append(parameter)
    return list(groups.values())


def learning_rates(
    plan: Plan, trained: Trained, stage: Stage, model: "nn.Module"
) -> dict[str, float]:
    """Peak learning rate of every parameter that a stage trains, by its name in memory.

    Args:
        plan: The applied plan.
        trained: What trains in this stage.
        stage: Settings of the stage.
        model: The model that `apply_plan` returned.

    Raises:
        SurgeryError: T102, if nothing trains; T103, for a name in `rates` that selects nothing.
    """
    names = _names(plan, trained.selection, model)
    if not names:
        raise SurgeryError(
            plan.recipe.locate(
                [
                    diagnostic(
                        "T102",
                        subject=f"the stage `{trained.name}`" if trained.name else "the recipe",
                        key=f"stages.{trained.name}.train" if trained.name else "train",
                    )
                ]
            )
        )
    rates = dict.fromkeys(names, stage.rate)
    copies = plan.part_swaps()
    operations = [edit for edit in plan.edits if edit not in copies]
    matcher = Matcher(plan.anatomy, operations, plan.recipe.operations)
    for name, rate in stage.rates.items():
        key = f"stages.{trained.name}.rates.{name}"
        selection, diagnostics = matcher.select([name], "rates")
        selection = in_copies(selection, copies)
        meant = [name for name in _names(plan, selection, model) if name in rates]
        if not meant:
            why = diagnostics[0].what if diagnostics else "what it means is frozen in this stage"
            raise SurgeryError(
                plan.recipe.locate([diagnostic("T103", name=name, why=why, key=key)])
            )
        rates.update(dict.fromkeys(meant, rate))
    scales = layer_scales(plan.anatomy.names_in("vision"), stage.layer_decay)
    return {name: rate * scales.get(_in_base(name), 1.0) for name, rate in rates.items()}


def layer_scales(names: Sequence[str], decay: float) -> dict[str, float]:
    """Factor of the learning rate of each tensor of a vision tower.

    Tensors before the first block are layer 0, block i is layer i + 1, those after the last block
    are one more and have the full rate (BEiT, arXiv 2106.08254, and its released code).

    Args:
        names: Names of the tower's tensors, in the order of registration.
        decay: Factor from one layer to the one before it.
    """
    found = [_BLOCK.search(name) for name in names]
    blocks = [int(match[1]) for match in found if match]
    last = max(blocks, default=-1) + 2
    scales, passed = {}, False
    for name, match in zip(names, found, strict=True):
        passed |= match is not None
        layer = int(match[1]) + 1 if match else last if passed or not blocks else 0
        scales[name] = decay ** (last - layer)
    return scales


def _names(plan: Plan, selection: Selection, model: "nn.Module") -> list[str]:
    alone = replace(plan, stages=(Trained("", selection),))
    return [name for name, _ in trainable_parameters(alone, model)]


def _in_base(name: str) -> str:
    return name.removeprefix(PEFT_PREFIX).replace(f".modules_to_save.{ADAPTER}.", ".")
