"""The structure of one decoder: its blocks, the roles of their matrices, tied tensors.

Plain data, so that plans, lint and tests work on it without weights and without torch. Identical
blocks share one `BlockKind`, which keeps the anatomy of 80 blocks as small as that of one.
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
"""Names of the model's parts, as a recipe's `train` and `freeze` take them."""


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Tensor(_Data):
    """A tensor of the base.

    Args:
        name: Full name, or relative to its block inside a `BlockKind`.
        shape: Dimensions, as in torch.
        dtype: A safetensors dtype, such as `BF16`.
        is_parameter: False for a persistent buffer; True by default.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    is_parameter: bool = True

    @property
    def size(self) -> int:
        """Number of parameters; 0 for a buffer."""
        return math.prod(self.shape) if self.is_parameter else 0


class Matrix(_Data):
    """A linear map inside a block, or the stacked ones of all its experts.

    Args:
        name: Module name relative to the block, such as `self_attn.q_proj`; a parameter's name
            where the matrices of all experts are one parameter of three dimensions.
        role: One of `ROLES`, or the last part of the module's name where none fits.
        part: `attention`, `mlp`, `mixer`, or empty.
        inputs: Input features.
        outputs: Output features.
        bias: Whether it has a bias.
        is_transposed: Whether the weight is stored as (inputs, outputs), as GPT-2's Conv1D.
        experts: Number of experts stacked in one parameter; 0 for a single matrix.
        apart: Why it can't be wrapped by LoRA or an expert, as a predicate such as `is a router`;
            empty where it can.
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
        """Whether one of the names, a role or a part, means this matrix.

        A router is meant by its role alone.
        """
        return self.role in names or (self.role != "router" and self.part in names)

    def takes_lora(self, names: tuple[str, ...]) -> bool:
        """Whether one of the names means this matrix, and LoRA can wrap it."""
        return not self.apart and self.is_named(names)


class BlockKind(_Data):
    """The tensors and matrices of identical blocks, named relative to the block.

    Blocks of one kind have the same class, and tensors of the same names, shapes and dtypes.
    """

    class_name: str
    tensors: tuple[Tensor, ...]
    matrices: tuple[Matrix, ...]

    def module_names(self) -> set[str]:
        """Every name, a part or a role, that means at least one matrix."""
        parts = {m.part for m in self.matrices if m.part and m.role != "router"}
        return parts | {m.role for m in self.matrices}

    def adaptable_names(self) -> set[str]:
        """Every name that means at least one matrix that LoRA can wrap."""
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
    """The structure of one model.

    Args:
        source: Name of the model, as the user gave it.
        model_type: Value from its config.
        class_name: Name of the transformers class.
        blocks_path: Module name of the list of blocks, such as `model.layers`.
        kinds: The distinct kinds of block.
        sequence: For each block, the index of its kind in `kinds`.
        outside: Tensors outside the blocks, under full names, each shared one once.
        parts: From each part to the full names of its tensors (blocks left out).
        tied: From the alias of a shared tensor to the name under which it is counted; both may be
            in blocks, where blocks share parameters.
        quantization: Name of the quantization method; empty for float weights.
        refusals: From the name of an unsupported operation to the reason, as a clause.
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
        """Number of blocks."""
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
        """From each block that shares parameters with an earlier one to the first such block."""
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
        """Every tensor under its full name: outside, then block by block; shared ones once."""
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
        """Number of parameters of each tensor, by full name; no buffers, shared ones once."""
        return {tensor.name: tensor.size for tensor in self.tensors() if tensor.is_parameter}

    def by_block(self, names: Iterable[str]) -> Counter[int]:
        """Sum of parameters by block; those outside the blocks are left out.

        Args:
            names: Full names of parameters.
        """
        counts: Counter[int] = Counter()
        for name in names:
            block = self._block_of(name)
            if block is not None:
                counts[block] += self.sizes[name]
        return counts

    @property
    def parameters(self) -> int:
        """Parameters of the complete model, shared ones counted once."""
        return sum(self.sizes.values())

    def names_in(self, part: str) -> list[str]:
        """Full names of the parameters in a part; empty where the model has no such part.

        Args:
            part: One of `PARTS`.
        """
        if part == "blocks":
            return [name for name in self.sizes if name.startswith(f"{self.blocks_path}.")]
        if part == "decoder":
            other = {*self.parts.get("vision", ()), *self.parts.get("projector", ())}
            return [name for name in self.sizes if name not in other]
        return list(self.parts.get(part, ()))
