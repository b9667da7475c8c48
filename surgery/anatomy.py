"""The map of one decoder: where its blocks are, which matrices play which role, what is tied.

Plain data, so that plans, lint and tests work on it without weights and without torch. Blocks that
look alike share one `BlockKind`, which keeps the map of an 80-block model as small as one block's.
"""

import math
from collections.abc import Iterator
from functools import cached_property
from typing import Final

from pydantic import BaseModel, ConfigDict

PARTS_OF_A_BLOCK: Final = ("attention", "mlp", "mixer")
ROLES: Final = ("q", "k", "v", "o", "gate", "up", "down", "qkv", "gate_up", "router")
PARTS: Final = ("decoder", "blocks", "embeddings", "norm", "head", "vision", "projector")
"""The names of parts that a recipe's `train` and `freeze` take."""


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tensor(_Data):
    """A tensor of the base.

    Args:
        name: full, or relative to its block inside a `BlockKind`.
        shape: as torch prints it.
        dtype: a safetensors name, such as `BF16`.
        is_parameter: False for a persistent buffer.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    is_parameter: bool = True

    @property
    def size(self) -> int:
        """Parameters in it; 0 for a buffer."""
        return math.prod(self.shape) if self.is_parameter else 0


class Matrix(_Data):
    """A linear map inside a block.

    Args:
        name: module name relative to the block, such as `self_attn.q_proj`.
        role: one of `ROLES`, or the module's own last name where it plays none of them.
        part: `attention`, `mlp`, `mixer`, or empty.
        inputs: width of what goes in.
        outputs: width of what comes out.
        bias: whether it adds a bias.
        is_transposed: weight stored as (inputs, outputs), GPT-2's Conv1D.
    """

    name: str
    role: str
    part: str
    inputs: int
    outputs: int
    bias: bool
    is_transposed: bool = False

    def takes_lora(self, words: tuple[str, ...]) -> bool:
        """Whether one of the words means this matrix; a router is only meant by its role."""
        return self.role in words or (self.role != "router" and self.part in words)


class BlockKind(_Data):
    """What all blocks of one kind have: tensors and matrices, named relative to the block."""

    class_name: str
    tensors: tuple[Tensor, ...]
    matrices: tuple[Matrix, ...]

    def words(self) -> set[str]:
        """Every word that picks at least one matrix."""
        parts = {m.part for m in self.matrices if m.part and m.role != "router"}
        return parts | {m.role for m in self.matrices}

    @property
    def parameters(self) -> int:
        """Parameters of one such block."""
        return sum(tensor.size for tensor in self.tensors)


class Anatomy(_Data):
    """The map of one model.

    Args:
        source: what the user calls the model.
        model_type: from its config.
        class_name: the transformers class.
        blocks_path: module name of the list of blocks, such as `model.layers`.
        kinds: the distinct kinds of block.
        sequence: for each block, the position of its kind in `kinds`.
        outside: tensors outside the blocks, under full names, each shared one once.
        parts: for each part, the full names of the tensors in it (blocks left out).
        tied: alias of a shared tensor to the name under which it is counted.
        quantization: the method that packed the weights, or empty.
    """

    source: str
    model_type: str
    class_name: str
    blocks_path: str
    kinds: tuple[BlockKind, ...]
    sequence: tuple[int, ...]
    outside: tuple[Tensor, ...]
    parts: dict[str, tuple[str, ...]]
    tied: dict[str, str] = {}
    quantization: str = ""

    @property
    def count(self) -> int:
        """How many blocks there are."""
        return len(self.sequence)

    def block(self, index: int) -> BlockKind:
        """The kind of the block at a position."""
        return self.kinds[self.sequence[index]]

    def block_path(self, index: int) -> str:
        """Full module name of the block at a position."""
        return f"{self.blocks_path}.{index}"

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor under its full name, in the order outside, then block by block."""
        yield from self.outside
        for index in range(self.count):
            path = self.block_path(index)
            for t in self.block(index).tensors:
                yield Tensor.model_construct(
                    name=f"{path}.{t.name}",
                    shape=t.shape,
                    dtype=t.dtype,
                    is_parameter=t.is_parameter,
                )

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Parameters of every tensor that has any, by full name; shared ones once."""
        return {tensor.name: tensor.size for tensor in self.tensors() if tensor.is_parameter}

    @property
    def parameters(self) -> int:
        """Parameters of the whole model, shared ones counted once."""
        return sum(self.sizes.values())

    def names_in(self, part: str) -> list[str]:
        """Full names of the parameters in a part; empty where the model has no such part.

        Args:
            part: one of `PARTS`.
        """
        if part == "blocks":
            return [name for name in self.sizes if name.startswith(f"{self.blocks_path}.")]
        if part == "decoder":
            apart = {*self.parts.get("vision", ()), *self.parts.get("projector", ())}
            return [name for name in self.sizes if name not in apart]
        return list(self.parts.get(part, ()))
