"""Equality of tensors: stored ones bit for bit, computed ones bit for bit or up to rounding.

A kernel's order of summation depends on more than its values: the processor, the number of threads
and rows, the strides of its input, the address of a matrix in memory (a weight mapped from a file
is rarely at a multiple of 64 bytes, its copy always is), and whether a weight requires gradients,
for which torch folds a batch of matrices into one. Under the same conditions the results have the
same bits. Under others they may differ by rounding, and this module says by how much.

Source: N. J. Higham and T. Mary, "A New Approach to Probabilistic Rounding Error Analysis", SIAM J.
Sci. Comput. 41(5), 2019: a sum of n products errs by about sqrt(n) unit roundoffs.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

_SAFETY: Final = 4
"""Factor for the error of both computations, and for what norms and softmax amplify."""


@dataclass(frozen=True)
class Difference:
    """The difference of two computations of the same logits.

    Args:
        largest: Largest absolute difference; 0 exactly where all values are equal, inf for a NaN.
        explained: Largest absolute difference that rounding explains.
    """

    largest: float
    explained: float

    @property
    def is_zero(self) -> bool:
        """Whether both have the same values, bit for bit."""
        return self.largest == 0

    @property
    def is_rounding(self) -> bool:
        """Whether rounding explains it."""
        return self.largest <= self.explained

    def __str__(self) -> str:
        """`bit for bit`, or the difference."""
        if self.is_zero:
            return "bit for bit"
        return f"{self.largest:.3g}, where rounding explains {self.explained:.3g}"


@dataclass(frozen=True)
class Sums:
    """The sizes of a decoder that determine the rounding error of its logits.

    Each of a block's two sums on the residual stream, and the head, rounds once to the dtype and
    sums `width` products in fp32. The errors of 2 x blocks + 1 such steps are independent.

    Args:
        dtype: Coarsest dtype that the decoder computes in.
        blocks: Number of blocks.
        width: Number of terms of the longest sum, which is the largest dimension inside a block.
    """

    dtype: torch.dtype
    blocks: int
    width: int

    @property
    def rounding(self) -> float:
        """Rounding error relative to the largest logit."""
        unit, wide = (torch.finfo(kind).eps / 2 for kind in (self.dtype, torch.float32))
        return _SAFETY * math.sqrt(2 * self.blocks + 1) * (unit + wide * math.sqrt(self.width))

    def compare(self, found: torch.Tensor, wanted: torch.Tensor) -> Difference:
        """Return the difference of two computations of the same logits, of equal shape."""
        scale = float(wanted.float().abs().max()) if wanted.numel() else 0.0
        return Difference(largest_difference(found, wanted), self.rounding * scale)


def largest_difference(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the largest absolute difference; 0 exactly where all are equal, inf for a NaN."""
    if torch.equal(first, second):
        return 0.0
    return float((first.float() - second.float()).abs().nan_to_num(nan=torch.inf).max())


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors have the same dtype, shape and bits; NaN equals NaN, -0 is not 0."""
    same_type = first.dtype == second.dtype and first.shape == second.shape
    return same_type and torch.equal(raw(first), raw(second))


def raw(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a tensor, uint8, row by row."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


@contextmanager
def frozen(*models: nn.Module) -> Iterator[None]:
    """Run models without gradients and with `requires_grad` off for every parameter.

    `torch.no_grad` alone is not enough: torch chooses the kernel by the weight's own flag.

    Args:
        models: Models whose flags are restored afterwards.
    """
    parameters = [p for model in models for p in model.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        with torch.no_grad():
            yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
