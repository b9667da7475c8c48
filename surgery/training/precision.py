"""What weights are held in while they train, and back to what they are stored in.

A bf16 weight has 8 significant bits, so a step of less than a 256th of it is lost: what trains is
held in fp32, whatever it is computed in.
"""

from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from torch import nn

Precision = Literal["fp32", "bf16", "fp16"]


def stored_types(model: "nn.Module") -> dict[str, torch.dtype]:
    """The type of every parameter, to be given back to `restore_types`."""
    return {name: parameter.dtype for name, parameter in model.named_parameters()}


def cast_to_fp32(model: "nn.Module", *, frozen: bool) -> None:
    """Hold what trains in fp32, and perhaps what is frozen too; packed weights stay as they are.

    Args:
        model: Changed in place.
        frozen: Whether all of it is to be held in fp32, because it is computed in fp32 or because
            FSDP takes one type for all of a block.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point() and (frozen or parameter.requires_grad):
            parameter.data = parameter.data.float()


def restore_types(model: "nn.Module", types: dict[str, torch.dtype]) -> None:
    """Give each parameter the type that it had, rounding to nearest."""
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(types[name])
