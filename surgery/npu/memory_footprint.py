"""The memory that each path of a plan takes on a device: weights as they are quantized, and cache.

Source of the bits: arXiv 2503.06019, section 4.3: language model W4A16, vision tower, projector and
LoRA W8A16. By this sum GenieBlue on BlueLM-3B takes 1.95 GB at 2048 tokens; table 9 prints 2.10 GB
measured. Activations are not in it.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from surgery.model.anatomy import BlockKind, Tensor
from surgery.operations.edits import (
    AddedTensor,
    AddLora,
    DropBlock,
    Edit,
    InsertBlock,
    SwapBlock,
    SwapPart,
)
from surgery.plan.planner import Plan

_SCHEME: Final = re.compile(r"w(\d+)a(\d+)")
_LENGTHS: Final = ("max_position_embeddings", "n_positions", "max_seq_len")
_HALF: Final = 2.0
"""Bytes of a number in fp16, and of one in norms and biases."""
_EIGHT_BITS: Final = 1.0


@dataclass(frozen=True)
class Scheme:
    """Bytes of a number.

    Args:
        decoder: of a weight of the decoder's matrices.
        auxiliary: of a weight of vision tower, projector and LoRA.
        cache: of keys and values.
    """

    decoder: float = _HALF
    auxiliary: float = _HALF
    cache: float = _HALF


@dataclass(frozen=True)
class Footprint:
    """Bytes of one path while it runs.

    Args:
        path: `text`, `multimodal`, or `both`: all that either takes, and one cache.
        blocks: of each block of the decoder with what stands next to it and its part of the cache.
        outside: embeddings, head and norms of the decoder.
        vision: vision tower and projector.
        cache: keys and values, which are in `blocks` too.
    """

    path: str
    blocks: tuple[int, ...]
    outside: int
    vision: int
    cache: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.blocks) + self.outside + self.vision


def read_scheme(name: str) -> Scheme:
    """Read `fp16`, or weights and activations as in `w4a16`; what is neither counts as fp16."""
    found = _SCHEME.fullmatch(name)
    return Scheme(int(found[1]) / 8, _EIGHT_BITS, int(found[2]) / 8) if found else Scheme()


def footprints(plan: Plan, context: int, scheme: Scheme) -> list[Footprint]:
    """Count the paths of a plan, and both in memory at once where there are two.

    Args:
        plan: on its model.
        context: tokens of the key-value cache.
        scheme: bytes of a number.
    """
    added = [e for e in plan.edits if not isinstance(e, InsertBlock | DropBlock)]
    swapped = {edit.block for edit in added if isinstance(edit, SwapBlock)}
    caches = [cache_bytes(kind, context, scheme) for kind in plan.result.kinds]
    own_bytes = [quantized_bytes(kind.tensors, scheme.decoder) for kind in plan.result.kinds]
    beside = [0] * plan.result.count
    for edit in added:
        if not isinstance(edit, SwapPart):
            beside[edit.block] += edit_bytes(edit, scheme)

    def path(name: str, *, base: bool, edits: bool) -> Footprint:
        blocks = tuple(
            caches[kind]
            + (own_bytes[kind] if base or index not in swapped else 0)
            + (beside[index] if edits else 0)
            for index, kind in enumerate(plan.result.sequence)
        )
        outside, vision = _outside(plan, scheme)
        cache = sum(caches[kind] for kind in plan.result.sequence)
        return Footprint(name, blocks, outside, vision if edits else 0, cache)

    text, seeing = path("text", base=True, edits=False), path("multimodal", base=False, edits=True)
    if not plan.has_text_path:
        return [seeing]
    return [text, seeing, path("both", base=True, edits=True)] if plan.edits else [seeing]


def parts_within(sizes: Iterable[int], limit: int) -> int:
    """Into how many parts a sequence is split, at the least, where none may exceed a limit.

    Args:
        sizes: bytes, in the order in which they run.
        limit: bytes of a part.
    """
    parts, filled = 0, math.inf
    for size in sizes:
        if filled + size > limit:
            parts, filled = parts + 1, 0
        filled += size
    return parts


def edit_bytes(edit: Edit, scheme: Scheme) -> int:
    """Bytes of what an edit adds."""
    is_auxiliary = isinstance(edit, AddLora | SwapPart)
    return quantized_bytes(edit.tensors, scheme.auxiliary if is_auxiliary else scheme.decoder)


def quantized_bytes(tensors: Iterable[Tensor] | Sequence[AddedTensor], width: float) -> int:
    """Bytes of weights; norms and biases are not quantized.

    Args:
        tensors: with their shapes.
        width: bytes of a matrix's number.
    """
    return round(sum(t.size * (width if len(t.shape) > 1 else _HALF) for t in tensors))


def cache_bytes(kind: BlockKind, context: int, scheme: Scheme) -> int:
    """Bytes of the keys and values of a block; 0 for one without attention.

    Sliding windows are counted in full. Keys and values are as wide as the matrices that make them;
    where these can't be told apart, as wide as what goes into the output matrix.

    Args:
        kind: of the block.
        context: tokens.
        scheme: bytes of a number.
    """
    attention = [m for m in kind.matrices if m.part == "attention"]
    widths = {m.role: m.outputs for m in attention}
    inner = max((m.inputs for m in attention if m.role == "o"), default=0)
    both = widths.get("k", 0) + widths.get("v", widths.get("k", 0))
    both = both or widths.get("qkv", 0) - inner
    return round(context * (both if both > 0 else 2 * inner) * scheme.cache)


def positions_of(plan: Plan) -> int:
    """Return the tokens that the decoder's config is made for; 0 where it names none."""
    config: dict[str, Any] = plan.files.config() if plan.files else {}
    for part in (config.get("text_config"), config):
        named = (part.get(name) for name in _LENGTHS) if isinstance(part, dict) else ()
        found = next((value for value in named if isinstance(value, int)), 0)
        if found:
            return found
    return 0


def _outside(plan: Plan, scheme: Scheme) -> tuple[int, int]:
    """Bytes outside of the blocks: the decoder's, and those of vision tower and projector."""
    parts = plan.result.parts
    vision_names = {name for part in ("vision", "projector") for name in parts.get(part, ())}
    decoder = (tensor for tensor in plan.result.outside if tensor.name not in vision_names)
    vision = (tensor for tensor in plan.result.outside if tensor.name in vision_names)
    return quantized_bytes(decoder, scheme.decoder), quantized_bytes(vision, scheme.auxiliary)
