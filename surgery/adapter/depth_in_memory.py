"""A model of another depth in memory, over the tensors of the base.

transformers builds it from the new config, so that positions, cache layers, windows and masks are
those of a model that was saved and loaded; then the base's tensors are assigned.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.model.anatomy import Anatomy
from surgery.model.source import ModelFiles
from surgery.plan.depth.build_check import read_depth
from surgery.plan.depth.changes import Slot, new_names
from surgery.plan.planner import Plan

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel


def change_depth(plan: Plan, model: "PreTrainedModel") -> "PreTrainedModel":
    """Return a model of the plan's depth, which shares the base's tensors.

    Args:
        plan: A plan for this model.
        model: The base, on any device and of any dtype.

    Raises:
        SurgeryError: P218 and P219, see `read_depth`.
    """
    deeper: Any = _empty(plan.anatomy, plan.depth, model)
    tensors = _tensors(model)
    for name, origin, slot in _origins(plan, deeper):
        _put(deeper, name, _start(tensors[origin], origin, slot))
    deeper.generation_config = model.generation_config
    if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
        deeper.gradient_checkpointing_enable()
    deepened: PreTrainedModel = deeper.train(model.training)
    return deepened


def _empty(anatomy: Anatomy, slots: tuple[Slot, ...], model: Any) -> Any:
    from accelerate import init_empty_weights

    with tempfile.TemporaryDirectory(prefix="surgery-") as folder:
        model.config.save_pretrained(folder)
        content = read_depth(ModelFiles(anatomy.source, Path(folder)), anatomy, slots)
    config = type(model.config).from_dict(content)
    config.name_or_path = model.config.name_or_path
    config._attn_implementation = model.config._attn_implementation
    with init_empty_weights(include_buffers=False):
        return type(model)(config)


def _tensors(model: "nn.Module") -> "dict[str, torch.Tensor]":
    """Parameters and buffers, non-persistent ones too, under each of their names."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    return {**parameters, **dict(model.named_buffers(remove_duplicate=False))}


def _origins(plan: Plan, deeper: "nn.Module") -> "list[tuple[str, str, Slot | None]]":
    """Each tensor name of the deeper model with its name in the base, and its slot in a block."""
    path = plan.anatomy.blocks_path
    slots = {own: (slot, source) for slot, source, own in new_names(plan.depth, path)}
    found: list[tuple[str, str, Slot | None]] = []
    for name in _tensors(deeper):
        inner = name.removeprefix(f"{path}.") if name.startswith(f"{path}.") else ""
        own = f"{path}.{inner.partition('.')[0]}."
        slot, source = slots.get(own, (None, own))
        found.append((name, f"{source}{name.removeprefix(own)}" if slot else name, slot))
    return found


def _start(tensor: "torch.Tensor", origin: str, slot: Slot | None) -> "torch.Tensor":
    import torch
    from torch import nn

    if slot is None or slot.insert is None:
        return tensor
    start = tensor.detach().clone()
    if origin in slot.zeros:
        torch.nn.init.zeros_(start)
    return nn.Parameter(start) if isinstance(tensor, nn.Parameter) else start


def _put(model: "nn.Module", name: str, tensor: "torch.Tensor") -> None:
    path, _, last = name.rpartition(".")
    owner = model.get_submodule(path)
    tensors = owner._parameters if last in owner._parameters else owner._buffers
    tensors[last] = tensor  # type: ignore[assignment]
