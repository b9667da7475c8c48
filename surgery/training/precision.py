"""The dtype of weights while they train, and back to the stored one.

A bf16 weight has 8 significant bits, so a step of less than a 256th of it is lost: what trains is
in fp32, whatever it is computed in.
"""

from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from torch import nn

Precision = Literal["fp32", "bf16", "fp16"]


def stored_types(model: "nn.Module") -> dict[str, torch.dtype]:
    """Dtype of every parameter, for `restore_types`."""
    return {name: parameter.dtype for name, parameter in model.named_parameters()}


def cast_to_fp32(model: "nn.Module", *, frozen: bool) -> None:
    """Cast what trains to fp32, and optionally what is frozen too; packed weights are unchanged.

    Args:
        model: Changed in place.
        frozen: Whether to cast frozen weights too, because it is computed in fp32 or because FSDP
            requires one dtype for a block.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point() and (frozen or parameter.requires_grad):
            parameter.data = parameter.data.float()


def restore_types(model: "nn.Module", types: dict[str, torch.dtype]) -> None:
    """Cast each parameter back to its dtype, rounding to nearest."""
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(types[name])
