"""What counts as the same: stored tensors by their bits, computed numbers by bits or by rounding.

A kernel sums in an order that depends on more than its numbers: the processor, the count of threads
and rows, the strides of its input, where a matrix lies in memory (a weight mapped from a file is
rarely at a multiple of 64 bytes, its copy always is), and whether a weight requires gradients, for
which torch folds a batch of matrices into one. Under the same conditions the results have the same
bits. Under others only rounding may lie between them, and how much that is stands here, once.

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
"""Covers that both computations err, and that norms and softmax amplify what reaches them."""


@dataclass(frozen=True)
class Difference:
    """How far two computations of the same logits lie apart.

    Args:
        largest: absolute; 0 exactly where all values are equal, inf beside a NaN.
        explained: as much of it as rounding explains.
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
        """`bit for bit`, or how far apart."""
        if self.is_zero:
            return "bit for bit"
        return f"{self.largest:.3g}, where rounding explains {self.explained:.3g}"


@dataclass(frozen=True)
class Sums:
    """What decides how far rounding takes the logits of a decoder apart.

    Each of a block's two sums on the residual stream, and the head, rounds once to the type and
    sums `width` products in fp32. The errors of 2 x blocks + 1 such steps are independent.

    Args:
        dtype: the coarsest that the decoder computes in.
        blocks: how many it has.
        width: the longest sum, which is the largest dimension inside a block.
    """

    dtype: torch.dtype
    blocks: int
    width: int

    @property
    def rounding(self) -> float:
        """How far apart, relative to the largest logit."""
        unit, wide = (torch.finfo(kind).eps / 2 for kind in (self.dtype, torch.float32))
        return _SAFETY * math.sqrt(2 * self.blocks + 1) * (unit + wide * math.sqrt(self.width))

    def compare(self, found: torch.Tensor, wanted: torch.Tensor) -> Difference:
        """Return how far two computations of the same logits lie apart; shapes must be equal."""
        scale = float(wanted.float().abs().max()) if wanted.numel() else 0.0
        return Difference(largest_difference(found, wanted), self.rounding * scale)


def largest_difference(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the largest absolute difference; 0 exactly where all are equal, inf beside a NaN."""
    if torch.equal(first, second):
        return 0.0
    return float((first.float() - second.float()).abs().nan_to_num(nan=torch.inf).max())


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether two tensors have the same type, shape and bits; a NaN is itself, -0 is not 0."""
    same_type = first.dtype == second.dtype and first.shape == second.shape
    return same_type and torch.equal(raw(first), raw(second))


def raw(tensor: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a tensor, uint8, row by row."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


@contextmanager
def frozen(*models: nn.Module) -> Iterator[None]:
    """Let models compute under one condition: without gradients, and no weight requires any.

    `torch.no_grad` alone is not enough: torch chooses the kernel by the weight's own flag.

    Args:
        models: their parameters' flags are put back afterwards.
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
