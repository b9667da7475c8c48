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
        start: `copy` (of a base tensor), `kaiming`, `normal`, `zeros`, or `weights` where the start
            is computed from the base's weights (DoRA, PiSSA).
        is_parameter: False for a buffer, which is copied and never counted.
        source: the base tensor that is copied, where it has another name.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    start: str
    is_parameter: bool = True
    source: str = ""

    @property
    def copied(self) -> str:
        """The name of the base tensor that a copy starts from."""
        return self.source or self.name

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
        block: position of the block in the base; -1 outside of the blocks.
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
class SwapPart(Edit):
    """A copy of a vision tower or projector that trains and takes its place as a copied block does.

    `operation` is the part's name, `path` the module's.
    """


@dataclass(frozen=True, slots=True)
class InsertBlock(Edit):
    """A copy of a block that is added to the depth; its tensors bear the original's names.

    Args:
        after: position in the base of the block behind which it stands, and behind what earlier
            edits put there.
        start: `copy`, or `identity` where all that writes to the residual stream is zero.
    """

    after: int
    start: str


@dataclass(frozen=True, slots=True)
class DropBlock(Edit):
    """A block of the base that is left out.

    Args:
        removed: its parameters.
    """

    removed: int


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

    @property
    def scale(self) -> float:
        """Factor of B @ A: alpha / rank, or alpha / sqrt(rank) with rsLoRA (arXiv 2312.03732)."""
        is_stabilized = dict(self.options).get("use_rslora", False)
        return self.alpha / (self.rank**0.5 if is_stabilized else self.rank)


@dataclass(frozen=True, slots=True)
class RoutingRule:
    """How the image tokens of a call are found and routed; one rule serves a whole model.

    Args:
        form: `gather`, `segments` or `blend`; they give the same result.
        image_token_id: the id that stands for an image token, or None where the model's config or
            the caller's mask tells.
        boundary: `plain`, or `cogvlm`: an image token only where the next one is too.
        positions: `plain`, or `cogvlm`: the patches of an image share one position.
        runs: (start, end) of each run of image tokens where the layout is known beforehand.
    """

    form: str = "gather"
    image_token_id: int | None = None
    boundary: str = "plain"
    positions: str = "plain"
    runs: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class AddExpert(Edit):
    """Copies of a block's matrices that take the image tokens.

    Args:
        matrices: full module names.
        rule: how tokens are routed.
    """

    matrices: tuple[str, ...]
    rule: RoutingRule


@dataclass(frozen=True, slots=True)
class AddLearner(Edit):
    """A visual and a textual low-rank attention beside a block's own, and their router.

    `path` is the block's attention.

    Args:
        rank: of each of the four pairs of both.
        hidden: width of the block's hidden state, of queries and of what is added to it.
        kv: width of keys and values.
        columns: inputs of the router.
        factor: how many times their mixture is added; the textual one alone is added once.
        norms: the block's norm before attention and the one before its MLP, as full module names.
        rule: how image tokens are found.
    """

    rank: int
    hidden: int
    kv: int
    columns: int
    factor: float
    norms: tuple[str, str]
    rule: RoutingRule
