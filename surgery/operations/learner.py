"""Learners: a visual and a textual low-rank attention, parallel to that of a block."""

from collections.abc import Sequence
from typing import Annotated, Final, Literal

from pydantic import Field

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.model.anatomy import Anatomy, BlockKind, Matrix
from surgery.operations.base import Operation
from surgery.operations.edits import AddedTensor, AddLearner, Edit, RoutingRule

_NORMS: Final = ("input_layernorm", "post_attention_layernorm")
_KINDS: Final = ("visual", "textual")


class Learner(Operation):
    """Add a visual and a textual learner in parallel to the attention of each picked block.

    Both take queries from the hidden state after the residual, keys and values from the prompt's
    image or text embeddings, and are mixed by a router that reads the block's own attention
    weights. A is normal with a standard deviation of 0.02, B is zero, so that they add exactly zero
    at the start; all are fp32.

    Source: Wings (arXiv 2406.03496), its released code, and decision 0006.
    """

    op: Literal["learner"] = "learner"
    """Add low-rank attentions for image and text tokens."""

    rank: Annotated[int, Field(ge=1)] = 64
    """Rank of the four pairs of each learner."""

    heads: Literal["full", "grouped"] = "full"
    """full: keys and values as wide as the hidden state, as released. grouped: as many heads of
    keys and values as the block has, each the mean of its group's plus the pair."""

    columns: Annotated[int, Field(ge=1)] = 4096
    """Number of tokens whose attention weights the router reads; later ones are ignored."""

    doubled: bool = False
    """Add the mixture of both learners twice, as the released code does; a textual learner alone,
    before a row's first image, is added once. Attention stays causal, so released weights don't
    give the released outputs (decision 0006)."""

    llm: Literal["full", "frozen"] = "frozen"
    """full: where `train` names this operation, the decoder trains in place too, as released, and
    the text path is the stored original. frozen: the decoder stays as it is."""

    image_token_id: Annotated[int, Field(ge=0)] | None = None
    """Token id of an image token. Unless given, it is taken from the model's config, or from the
    caller's `image_mask` or `token_type_ids`."""

    @property
    def companions(self) -> tuple[str, ...]:
        """The decoder, under `llm: full`."""
        return ("decoder",) if self.llm == "full" else ()

    def plan(self, name: str, anatomy: Anatomy, blocks: Sequence[int]) -> list[Edit]:
        """Return one edit for each block; see `Operation.plan`."""
        return [self._learner(name, anatomy, block) for block in blocks]

    def _learner(self, name: str, anatomy: Anatomy, block: int) -> AddLearner:
        kind, path = anatomy.block(block), anatomy.block_path(block)
        fault = _unsupported_reason(kind)
        if fault:
            raise SurgeryError(
                diagnostic(
                    "P215.block",
                    block=block,
                    source=anatomy.source,
                    fault=fault,
                    norms=" and ".join(_NORMS),
                    key="blocks",
                )
            )
        output = _output(kind)
        hidden, kv = output.outputs, self._kv(anatomy, kind, output)
        if self.rank > kv:
            raise SurgeryError(diagnostic("P208.width", rank=self.rank, width=kv, key="rank"))
        attention = f"{path}.{output.name.rpartition('.')[0]}"
        return AddLearner(
            operation=name,
            op="learner",
            block=block,
            path=attention,
            tensors=tuple(self._tensors(f"{attention}.learner", hidden, kv)),
            rank=self.rank,
            hidden=hidden,
            kv=kv,
            columns=self.columns,
            factor=2.0 if self.doubled else 1.0,
            norms=(f"{path}.{_NORMS[0]}", f"{path}.{_NORMS[1]}"),
            rule=RoutingRule(image_token_id=self.image_token_id),
        )

    def _kv(self, anatomy: Anatomy, kind: BlockKind, output: Matrix) -> int:
        """Width of keys and values."""
        hidden = output.outputs
        if self.heads == "full":
            return hidden
        widths = {m.role: m.outputs for m in kind.matrices if m.part == "attention"}
        kv = widths.get("k", (widths.get("qkv", 0) - output.inputs) // 2)
        if kv <= 0 or hidden % kv:
            raise SurgeryError(
                diagnostic("P215.grouped", source=anatomy.source, hidden=hidden, kv=kv, key="heads")
            )
        return kv

    def _tensors(self, path: str, hidden: int, kv: int) -> list[AddedTensor]:
        widths = {"q": hidden, "k": kv, "v": kv, "o": hidden}
        tensors = []
        for pair in (f"{path}.{kind}.{role}" for kind in _KINDS for role in widths):
            outputs = widths[pair[-1]]
            shape = (self.rank, hidden)
            tensors.append(AddedTensor(f"{pair}.A.weight", shape, "F32", "normal"))
            tensors.append(AddedTensor(f"{pair}.B.weight", (outputs, self.rank), "F32", "zeros"))
        weight, bias = f"{path}.router.weight", f"{path}.router.bias"
        tensors.append(AddedTensor(weight, (2, self.columns), "F32", "kaiming"))
        return [*tensors, AddedTensor(bias, (2,), "F32", "zeros")]


def _output(kind: BlockKind) -> Matrix:
    return next(m for m in kind.matrices if m.part == "attention" and m.role == "o")


def _unsupported_reason(kind: BlockKind) -> str:
    """Why learners don't fit such a block; empty where they do."""
    attention = [m for m in kind.matrices if m.part == "attention" and m.role == "o"]
    if len(attention) != 1:
        return f"it has {len(attention)} attentions with an output matrix, and not one"
    owners = {matrix.name.partition(".")[0] for matrix in kind.matrices}
    direct = (t.name.partition(".") for t in kind.tensors if t.name.count(".") <= 1)
    norms = dict.fromkeys(owner for owner, _, _ in direct if owner not in owners)
    if set(norms) != set(_NORMS):
        return f"its modules other than matrices are {', '.join(norms) or 'nothing'}"
    return ""
