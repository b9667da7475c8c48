"""Low-rank pairs whose A and B are inputs of the graph, so that one graph serves both paths.

Shapes: R rank, D inputs, E outputs of the matrix.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from surgery.operations.edits import AddLora


class InputLora(nn.Module):
    """A linear module and a pair next to it; A and B are given for each call.

    Args:
        base_layer: what the pair is added alongside.
        a: (R, D).
        b: (E, R), with the scale in it already.
    """

    def __init__(self, base_layer: nn.Module, a: torch.Tensor, b: torch.Tensor) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.Parameter(a, requires_grad=False)
        self.lora_B = nn.Parameter(b, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the base gives, and the pair's share."""
        out: torch.Tensor = self.base_layer(x)
        return out + x @ self.lora_A.T @ self.lora_B.T


def add_loras(block: nn.Module, module_path: str, edits: Iterable[AddLora]) -> dict[str, str]:
    """Put the pairs alongside the matrices of a block.

    Args:
        block: changed in place.
        module_path: its full module name.
        edits: of this block.

    Returns:
        For each input of the graph, named as the adapter's tensor, the parameter that it is.
    """
    inputs: dict[str, str] = {}
    for edit in edits:
        name = edit.path.removeprefix(f"{module_path}.")
        base: Any = block.get_submodule(name)
        pair = [torch.zeros(tensor.shape) for tensor in edit.tensors[:2]]
        block.set_submodule(name, InputLora(base, *pair))
        inputs[edit.tensors[0].name] = f"{name}.lora_A"
        inputs[edit.tensors[1].name] = f"{name}.lora_B"
    return inputs
