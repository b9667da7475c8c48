"""The memory that training a stage takes for weights, gradients and optimizer, on one process.

Activations, which hang on the batch and on how attention is computed, are not in it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from surgery.operations.edits import AddedTensor
from surgery.plan.planner import Plan
from surgery.plan.planner import PlannedStage as Trained
from surgery.recipe.training_schema import Stage
from surgery.storage.safetensors.dtypes import DTYPE_BYTES

_FP32: Final = 4
_MOMENTS: Final = 2
"""Of AdamW: the mean of the gradient and of its square."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a stage.

    Args:
        stage: Its name.
        weights: Of the model with all that is added; what trains or did train is held in fp32.
        gradients: Of what trains.
        optimizer: AdamW's two moments of what trains.
    """

    stage: str
    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer


def training_memory(plan: Plan) -> list[Memory]:
    """Predict the memory of each stage, in order.

    Args:
        plan: Its stages' `precision` says what is frozen in which type; fp32 without stages.
    """
    found, fp32_keys = [], frozenset[tuple[str, str]]()
    for trained in plan.stages:
        fp32_keys |= _trained(trained)
        stage = plan.recipe.stages.get(trained.name, Stage())
        size = plan.trainable_in(trained) * _FP32
        weights = sum(_weights(plan, fp32_keys, in_fp32=stage.precision == "fp32"))
        found.append(Memory(trained.name, weights, size, size * _MOMENTS))
    return found


def _trained(stage: Trained) -> frozenset[tuple[str, str]]:
    return frozenset(("", name) for name in stage.selection.base) | stage.selection.added


def _weights(plan: Plan, fp32_keys: frozenset[tuple[str, str]], *, in_fp32: bool) -> Iterator[int]:
    for key, size, dtype in _parameters(plan):
        yield size * (_FP32 if in_fp32 or key in fp32_keys else int(DTYPE_BYTES[dtype]))


def _parameters(plan: Plan) -> Iterator[tuple[tuple[str, str], int, str]]:
    """Who trains it, how many numbers, and the stored type of each parameter."""
    for tensor in plan.result.tensors():
        yield ("", tensor.name), tensor.size, tensor.dtype
    added: Iterator[tuple[str, AddedTensor]] = (
        (edit.operation, t) for edit in plan.edits for t in edit.tensors if not plan.changes_depth
    )
    for operation, t in added:
        yield (operation, t.name), t.size, t.dtype
