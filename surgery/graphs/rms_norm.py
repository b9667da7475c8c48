"""RMS norms as one operator each, whatever the family writes them as.

Written out, the norm is a known trap of Qualcomm's compiler: every node of it validates, and the
graph can't be finalized. As `F.rms_norm` it is exported as RMSNormalization. Which module is an RMS
norm is found by trying it, not by its name.
"""

import copy
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional

_EPSILON: Final = ("variance_epsilon", "eps", "epsilon", "norm_eps", "rms_norm_eps")
_NARROW: Final = 32
"""Widest norm that the HTP emulator of QAIRT 2.51 computes wrong in some shapes of three dimensions
and more; over two it is always right."""


class RMSNorm(nn.Module):
    """x / rms(x) * weight, over the last dimension (arXiv 1910.07467).

    Args:
        weight: (D), or None.
        eps: added to the mean of squares.
    """

    def __init__(self, weight: torch.Tensor | None, eps: float) -> None:
        super().__init__()
        self.weight = None if weight is None else nn.Parameter(weight, requires_grad=False)
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the normed input, of its shape."""
        width = x.shape[-1]
        if width <= _NARROW and x.dim() > 2:
            rows = functional.rms_norm(x.reshape(-1, width), (width,), self.weight, self.eps)
            return rows.reshape(x.shape)
        return functional.rms_norm(x, (width,), self.weight, self.eps)


def rewrite_norms(block: nn.Module) -> list[str]:
    """Replace each module of a block that is an RMS norm.

    Args:
        block: changed in place, on any device.

    Returns:
        The names of those replaced.
    """
    found = {name: _as_rms_norm(module) for name, module in block.named_modules()}
    replaced = {name: norm for name, norm in found.items() if norm is not None and name}
    for name, norm in replaced.items():
        block.set_submodule(name, norm)
    return list(replaced)


def _as_rms_norm(module: Any) -> RMSNorm | None:
    eps = next((getattr(module, name) for name in _EPSILON if hasattr(module, name)), None)
    tensors = [*module.named_parameters(), *module.named_buffers()]
    fits = not tensors or (len(tensors) == 1 and tensors[0][0] == "weight")
    if not isinstance(eps, float) or list(module.children()) or not fits:
        return None
    weight = tensors[0][1] if tensors else None
    if weight is None:
        return RMSNorm(None, eps) if _is_rms_norm(module, None, eps, 0.0) else None
    for offset in (0.0, 1.0):
        if weight.dim() == 1 and _is_rms_norm(module, weight, eps, offset):
            return RMSNorm(weight.detach() + offset if offset else weight.detach(), eps)
    return None


def _is_rms_norm(module: Any, weight: torch.Tensor | None, eps: float, offset: float) -> bool:
    """Try it on small values, for which eps counts; offset is what is added to the weight."""
    generator = torch.Generator().manual_seed(0)
    trial = copy.deepcopy(module).to_empty(device="cpu").float()
    width = 24 if weight is None else weight.shape[0]
    x = torch.randn(2, 3, width, generator=generator) * 2 * eps**0.5
    scale = None
    with torch.no_grad():
        if weight is not None:
            scale = trial.weight.copy_(torch.randn(width, generator=generator)) + offset
        try:
            found = trial(x)
        except Exception:  # it takes something else, so it is something else
            return False
        expected = functional.rms_norm(x, (width,), scale, eps)
    return isinstance(found, torch.Tensor) and torch.allclose(found, expected, atol=1e-4, rtol=1e-4)
