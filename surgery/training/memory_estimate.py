"""The memory that a stage needs for weights, gradients and optimizer, in one process.

Activations are not included; they depend on the batch and on the implementation of attention.
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
"""AdamW's moments: the means of the gradient and of its square."""


@dataclass(frozen=True)
class Memory:
    """Memory of a stage, in bytes.

    Args:
        stage: Name of the stage.
        weights: Weights of the model with everything added; in fp32 what trains or has trained.
        gradients: Gradients of what trains.
        optimizer: AdamW's two moments of what trains.
    """

    stage: str
    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.weights + self.gradients + self.optimizer


def training_memory(plan: Plan) -> list[Memory]:
    """Predict the memory of each stage, in order.

    Args:
        plan: A plan; the `precision` of its stages gives the dtype of frozen weights, fp32 without
            stages.
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
    """Operation and name, number of values, and stored dtype of each parameter."""
    for tensor in plan.result.tensors():
        yield ("", tensor.name), tensor.size, tensor.dtype
    added: Iterator[tuple[str, AddedTensor]] = (
        (edit.operation, t) for edit in plan.edits for t in edit.tensors if not plan.changes_depth
    )
    for operation, t in added:
        yield (operation, t.name), t.size, t.dtype
