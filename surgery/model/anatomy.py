"""The map of one decoder: where its blocks are, which matrices play which role, what is tied.

Plain data, so that plans, lint and tests work on it without weights and without torch. Blocks that
look alike share one `BlockKind`, which keeps the map of an 80-block model as small as one block's.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
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
    """A linear map inside a block, or one of each of its experts.

    Args:
        name: module name relative to the block, such as `self_attn.q_proj`; a parameter's where
            all experts' matrices are one parameter of three dimensions.
        role: one of `ROLES`, or the module's own last name where it plays none of them.
        part: `attention`, `mlp`, `mixer`, or empty.
        inputs: width of what goes in.
        outputs: width of what comes out.
        bias: whether it adds a bias.
        is_transposed: weight stored as (inputs, outputs), GPT-2's Conv1D.
        experts: how many experts have such a matrix in one parameter; 0 for a matrix of its own.
        apart: why nothing can be put beside it, as half a sentence; empty where something can.
    """

    name: str
    role: str
    part: str
    inputs: int
    outputs: int
    bias: bool
    is_transposed: bool = False
    experts: int = 0
    apart: str = ""

    def is_named(self, names: tuple[str, ...]) -> bool:
        """Whether one of the words means this matrix; a router is only meant by its role."""
        return self.role in names or (self.role != "router" and self.part in names)

    def takes_lora(self, names: tuple[str, ...]) -> bool:
        """Whether one of the words means this matrix, and something can be put beside it."""
        return not self.apart and self.is_named(names)


class BlockKind(_Data):
    """What all blocks of one kind have: tensors and matrices, named relative to the block.

    Blocks of one kind have the same class, and tensors of the same names, shapes and types.
    """

    class_name: str
    tensors: tuple[Tensor, ...]
    matrices: tuple[Matrix, ...]

    def module_names(self) -> set[str]:
        """Every word that means at least one matrix."""
        parts = {m.part for m in self.matrices if m.part and m.role != "router"}
        return parts | {m.role for m in self.matrices}

    def adaptable_names(self) -> set[str]:
        """Every word that means at least one matrix that something can be put beside."""
        return {
            word
            for word in self.module_names()
            if any(m.takes_lora((word,)) for m in self.matrices)
        }

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
        tied: alias of a shared tensor to the name under which it is counted; both may be inside
            blocks, where blocks share parameters.
        quantization: the method that packed the weights, or empty.
        refusals: word of an operation to the reason why it can't be done right on this model, as
            half a sentence.
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
    refusals: dict[str, str] = {}

    def __repr__(self) -> str:
        blocks = f"{self.count:,} blocks in {self.blocks_path}"
        return f"<Anatomy of {self.source}: {blocks}, {self.parameters:,} parameters>"

    __str__ = __repr__

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

    def blocks_with(self, word: str) -> tuple[int, ...]:
        """The blocks that have a part or role, one of `BlockKind.module_names()`, ascending."""
        having = [word in kind.module_names() for kind in self.kinds]
        return tuple(i for i, kind in enumerate(self.sequence) if having[kind])

    def sharing(self) -> dict[int, int]:
        """Blocks that share parameters with an earlier one, and the first that they share with."""
        shared: dict[int, int] = {}
        for alias, counted in self.tied.items():
            block, first = self._block_of(alias), self._block_of(counted)
            if None not in (block, first) and block != first:
                shared.setdefault(block, first)  # type: ignore[arg-type]
        return shared

    def _block_of(self, name: str) -> int | None:
        prefix = f"{self.blocks_path}."
        position = name.removeprefix(prefix).partition(".")[0]
        return int(position) if name.startswith(prefix) and position.isdigit() else None

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor under its full name: outside, then block by block; a shared one once."""
        yield from self.outside
        for index in range(self.count):
            path = self.block_path(index)
            for t in self.block(index).tensors:
                name = f"{path}.{t.name}"
                if name in self.tied:
                    continue
                yield Tensor.model_construct(
                    name=name,
                    shape=t.shape,
                    dtype=t.dtype,
                    is_parameter=t.is_parameter,
                )

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Parameters of every tensor that has any, by full name; shared ones once."""
        return {tensor.name: tensor.size for tensor in self.tensors() if tensor.is_parameter}

    def by_block(self, names: Iterable[str]) -> Counter[int]:
        """Parameters of some of the tensors, by the block that they are in; those outside left out.

        Args:
            names: full names of parameters.
        """
        counts: Counter[int] = Counter()
        for name in names:
            block = self._block_of(name)
            if block is not None:
                counts[block] += self.sizes[name]
        return counts

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
            other = {*self.parts.get("vision", ()), *self.parts.get("projector", ())}
            return [name for name in self.sizes if name not in other]
        return list(self.parts.get(part, ()))
