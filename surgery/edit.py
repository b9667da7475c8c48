"""The closed set of edits: plain data that operations yield and only `apply` carries out.

A name here is the name that PEFT saves under, without its `base_model.model.` in front.
"""

import math
from dataclasses import dataclass, field
from typing import Final

PEFT_PREFIX: Final = "base_model.model."
"""What `peft` puts before every tensor name in an adapter file."""


@dataclass(frozen=True, slots=True)
class AddedTensor:
    """A tensor that an edit adds.

    Args:
        name: in the adapter, without `PEFT_PREFIX`.
        shape: in elements, as torch prints it.
        dtype: a safetensors name, such as `BF16`.
        start: `copy` (of the base tensor of this name), `kaiming`, `zeros`, or `weights` where
            the start is computed from the base's weights (DoRA, PiSSA).
        is_parameter: False for a buffer, which is copied and never counted.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    start: str
    is_parameter: bool = True

    @property
    def size(self) -> int:
        """Parameters in it; 0 for a buffer."""
        return math.prod(self.shape) if self.is_parameter else 0


@dataclass(frozen=True, slots=True)
class Edit:
    """One primitive change to one place.

    Args:
        operation: the name that the recipe gives to the operation.
        op: which kind of operation it is.
        block: position of the block in the base.
        path: full module name of what is changed.
        tensors: all that it adds.
    """

    operation: str
    op: str
    block: int
    path: str
    tensors: tuple[AddedTensor, ...] = field(repr=False)

    @property
    def parameters(self) -> int:
        """Parameters added."""
        return sum(tensor.size for tensor in self.tensors)


@dataclass(frozen=True, slots=True)
class SwapBlock(Edit):
    """A copy of a whole block that takes the block's place along the multimodal path."""


@dataclass(frozen=True, slots=True)
class AddLora(Edit):
    """A low-rank pair beside one matrix.

    Args:
        rank: columns of B and rows of A.
        alpha: the numerator of the scale alpha / rank.
        options: further fields of PEFT's LoraConfig, sorted by name.
    """

    rank: int
    alpha: float
    options: tuple[tuple[str, object], ...] = ()
