"""The closed set of edits: plain data that operations return and only `apply` executes.

Tensor names are those that PEFT saves under, without the prefix `base_model.model.`.
"""

import math
from dataclasses import dataclass, field
from typing import Final

PEFT_PREFIX: Final = "base_model.model."
"""Prefix of every tensor name in an adapter file of PEFT."""


@dataclass(frozen=True, slots=True)
class AddedTensor:
    """A tensor that an edit adds.

    Args:
        name: Name in the adapter, without `PEFT_PREFIX`.
        shape: Dimensions, as in torch.
        dtype: A safetensors dtype, such as `BF16`.
        start: Initialization: `copy` (of a base tensor), `kaiming`, `normal`, `zeros`, or `weights`
            where it is computed from the base's weights (DoRA, PiSSA).
        is_parameter: False for a buffer, which is copied and never counted; True by default.
        source: Name of the copied base tensor, where it differs from `name`.
        is_frozen: Whether no recipe can train it; False by default.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    start: str
    is_parameter: bool = True
    source: str = ""
    is_frozen: bool = False

    @property
    def copied(self) -> str:
        """The name of the base tensor that a copy starts from."""
        return self.source or self.name

    @property
    def size(self) -> int:
        """Number of parameters; 0 for a buffer."""
        return math.prod(self.shape) if self.is_parameter else 0


@dataclass(frozen=True, slots=True)
class Edit:
    """One primitive change to one module.

    Args:
        operation: Name of the operation in the recipe.
        op: Kind of the operation, such as `lora`.
        block: Index of the block in the base; -1 outside the blocks.
        path: Full name of the changed module.
        tensors: All tensors that it adds.
    """

    operation: str
    op: str
    block: int
    path: str
    tensors: tuple[AddedTensor, ...] = field(repr=False)

    @property
    def parameters(self) -> int:
        """Number of added parameters."""
        return sum(tensor.size for tensor in self.tensors)


@dataclass(frozen=True, slots=True)
class SwapBlock(Edit):
    """A copy of a complete block that replaces it on the multimodal path."""


@dataclass(frozen=True, slots=True)
class SwapPart(Edit):
    """A trained copy of a vision tower or projector, swapped in as a copied block is.

    `operation` is the part's name, `path` the module's.
    """


@dataclass(frozen=True, slots=True)
class InsertBlock(Edit):
    """A copy of a block that is added to the depth; its tensors have the original's names.

    Args:
        after: Index in the base of the block after which it is inserted, following what earlier
            edits inserted there.
        start: `copy`, or `identity` where all that writes to the residual stream is zero.
    """

    after: int
    start: str


@dataclass(frozen=True, slots=True)
class DropBlock(Edit):
    """A block of the base that is removed.

    Args:
        removed: Its number of parameters.
    """

    removed: int


@dataclass(frozen=True, slots=True)
class AddLora(Edit):
    """A LoRA pair on one matrix.

    Args:
        rank: Columns of B and rows of A.
        alpha: Numerator of the scale alpha / rank.
        options: Further fields of PEFT's LoraConfig, sorted by name.
    """

    rank: int
    alpha: float
    options: tuple[tuple[str, object], ...] = ()

    @property
    def is_dora(self) -> bool:
        """Whether it has magnitudes too, and is no plain pair (DoRA, arXiv 2402.09353)."""
        return bool(dict(self.options).get("use_dora", False))

    @property
    def scale(self) -> float:
        """Factor of B @ A: alpha / rank, or alpha / sqrt(rank) with rsLoRA (arXiv 2312.03732)."""
        is_stabilized = dict(self.options).get("use_rslora", False)
        return self.alpha / (self.rank**0.5 if is_stabilized else self.rank)


@dataclass(frozen=True, slots=True)
class RoutingRule:
    """How the image tokens of a call are found and routed; one rule applies to the whole model.

    Args:
        form: `gather`, `segments` or `blend`, which give the same result; `gather` by default.
        image_token_id: Token id of an image token; None to take it from the model's config or the
            caller's mask.
        boundary: `plain`, or `cogvlm`: an image token only where the next one is too.
        positions: `plain`, or `cogvlm`: the patches of an image share one position.
        runs: (start, end) of each run of image tokens, where the layout is static.
    """

    form: str = "gather"
    image_token_id: int | None = None
    boundary: str = "plain"
    positions: str = "plain"
    runs: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class AddExpert(Edit):
    """Copies of a block's matrices for the image tokens.

    Args:
        matrices: Full module names.
        rule: How tokens are routed.
    """

    matrices: tuple[str, ...]
    rule: RoutingRule


@dataclass(frozen=True, slots=True)
class AddLearner(Edit):
    """A visual and a textual low-rank attention, parallel to a block's own, and their router.

    `path` is the block's attention.

    Args:
        rank: Rank of each of the four pairs of both.
        hidden: Width of the block's hidden state, which is also that of queries and outputs.
        kv: Width of keys and values.
        columns: Inputs of the router, in tokens.
        factor: How many times their mixture is added; the textual one alone is added once.
        norms: Full module names of the block's norm before attention and the one before its MLP.
        rule: How image tokens are found.
    """

    rank: int
    hidden: int
    kv: int
    columns: int
    factor: float
    norms: tuple[str, str]
    rule: RoutingRule
