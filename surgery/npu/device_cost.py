"""What one plan costs on a device, by arithmetic: storage, memory, loading, and a bound of speed.

Weights as the paper quantizes them (arXiv 2503.06019, section 4.2): language model W4A16; vision
tower, projector and LoRA W8A16. The bound is the memory's bandwidth over the bytes that one token
reads while decoding.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, Literal

from surgery.model.anatomy import Anatomy
from surgery.npu.export_size import Exported, exported
from surgery.npu.memory_footprint import (
    Scheme,
    cache_bytes,
    edit_bytes,
    quantized_bytes,
    read_scheme,
)
from surgery.operations.edits import Edit, SwapBlock, SwapPart
from surgery.plan.planner import Plan

SCHEME: Final = "w4a16"

BaseForm = Literal["unshared", "shared"]


@dataclass(frozen=True)
class Cost:
    """One recipe on one device, in bytes and tokens a second.

    Args:
        recipe: its name.
        base: unshared, where text has the untouched base; shared, where it takes the multimodal
            path.
        storage: all weights on the phone.
        text_memory: weights and cache while the text path runs.
        multimodal_memory: the same of the multimodal path.
        text_load: bytes that are read before the first word of text.
        multimodal_load: the same of the multimodal path.
        switch: bytes that are read to go from text to the multimodal path, all else staying.
        text_speed: bound of tokens a second while decoding with a full cache; None where the
            device's bandwidth isn't known.
        multimodal_speed: the same, for text tokens behind an image.
        exported: what `surgery export --to qnn` writes; None where it doesn't take the plan.
    """

    recipe: str
    base: BaseForm
    storage: int
    text_memory: int
    multimodal_memory: int
    text_load: int
    multimodal_load: int
    switch: int
    text_speed: float | None
    multimodal_speed: float | None
    exported: Exported | None = None


@dataclass(frozen=True)
class _Sizes:
    """Bytes of what a plan has.

    Args:
        before: the language model as it was.
        after: the language model that the multimodal path runs, copies in place.
        copies: the copied blocks.
        added: LoRA and learners, which every token goes through.
        experts: what only image tokens go through.
        vision: tower and projector.
        read_before: what one token reads of `before`.
        read_after: what one token reads of `after`.
        cache: keys and values.
        in_place: whether the language model itself trained.
    """

    before: int
    after: int
    copies: int
    added: int
    experts: int
    vision: int
    read_before: int
    read_after: int
    cache: int
    in_place: bool


def costs_of(plan: Plan, context: int, bandwidth: float | None) -> list[Cost]:
    """Count one plan, first with an unshared base, then with a shared one.

    Args:
        plan: what to count.
        context: tokens of the cache.
        bandwidth: of the device's memory, bytes a second.
    """
    sizes = _sizes(plan, context, read_scheme(SCHEME))
    costs = [_unshared(plan, sizes, bandwidth), _shared(plan, sizes, bandwidth)]
    return [replace(cost, exported=exported(plan, SCHEME, cost.base)) for cost in costs]


def _unshared(plan: Plan, s: _Sizes, bandwidth: float | None) -> Cost:
    multimodal = s.after + s.added + s.experts + s.vision
    more = s.added + s.experts + s.vision + (s.after if s.in_place else s.copies)
    return Cost(
        recipe=plan.recipe.name,
        base="unshared",
        storage=s.before + more,
        text_memory=s.before + s.cache,
        multimodal_memory=multimodal + s.cache,
        text_load=s.before,
        multimodal_load=multimodal,
        switch=more,
        text_speed=_speed(bandwidth, s.read_before + s.cache),
        multimodal_speed=_speed(bandwidth, s.read_after + s.added + s.cache),
    )


def _shared(plan: Plan, s: _Sizes, bandwidth: float | None) -> Cost:
    text = s.after + s.added
    multimodal = text + s.experts + s.vision
    speed = _speed(bandwidth, s.read_after + s.added + s.cache)
    return Cost(
        recipe=plan.recipe.name,
        base="shared",
        storage=multimodal,
        text_memory=text + s.cache,
        multimodal_memory=multimodal + s.cache,
        text_load=text,
        multimodal_load=multimodal,
        switch=s.experts + s.vision,
        text_speed=speed,
        multimodal_speed=speed,
    )


def _speed(bandwidth: float | None, read: int) -> float | None:
    return bandwidth / read if bandwidth else None


def _sizes(plan: Plan, context: int, scheme: Scheme) -> _Sizes:
    active = [e for e in plan.edits if not plan.changes_depth and not isinstance(e, SwapPart)]
    copies = [edit for edit in active if isinstance(edit, SwapBlock)]
    added = [edit for edit in active if not isinstance(edit, SwapBlock) and not _is_expert(edit)]
    before, read_before = _decoder(plan.anatomy, scheme)
    after, read_after = _decoder(plan.result, scheme)
    caches = [cache_bytes(kind, context, scheme) for kind in plan.result.kinds]
    return _Sizes(
        before=before,
        after=after,
        copies=sum(edit_bytes(edit, scheme) for edit in copies),
        added=sum(edit_bytes(edit, scheme) for edit in added),
        experts=sum(edit_bytes(edit, scheme) for edit in active if _is_expert(edit)),
        vision=_vision(plan.result, scheme),
        read_before=read_before,
        read_after=read_after,
        cache=sum(caches[kind] for kind in plan.result.sequence),
        in_place=not plan.has_text_path,
    )


def _is_expert(edit: Edit) -> bool:
    return edit.op == "expert"


def _decoder(anatomy: Anatomy, scheme: Scheme) -> tuple[int, int]:
    """Bytes of a language model, and of what one token reads of it.

    A token reads one row of the embedding; all of it where it is the head, too.
    """
    kinds = [quantized_bytes(kind.tensors, scheme.decoder) for kind in anatomy.kinds]
    blocks = sum(kinds[kind] for kind in anatomy.sequence)
    vision = _names(anatomy, ("vision", "projector"))
    embeddings = _names(anatomy, ("embeddings",))
    own = [tensor for tensor in anatomy.outside if tensor.name not in vision]
    rows = [tensor for tensor in own if tensor.name in embeddings and not anatomy.tied]
    outside = quantized_bytes(own, scheme.decoder)
    return blocks + outside, blocks + outside - quantized_bytes(rows, scheme.decoder)


def _vision(anatomy: Anatomy, scheme: Scheme) -> int:
    names = _names(anatomy, ("vision", "projector"))
    return quantized_bytes([t for t in anatomy.outside if t.name in names], scheme.auxiliary)


def _names(anatomy: Anatomy, parts: Iterable[str]) -> set[str]:
    return {name for part in parts for name in anatomy.parts.get(part, ())}
