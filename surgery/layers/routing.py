"""How the image tokens of a call are routed, computed once for all experts of a model.

Shapes: B rows, T tokens of this call, N = B x T.
"""

import functools
import itertools
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.layers.call_state import CallState
from surgery.layers.cogvlm_positions import LAG, begin_lag, remember_lag, share_positions
from surgery.layers.image_tokens import (
    CALLER_MASK,
    INPUT_IDS,
    apply_boundary,
    cached_tokens,
    image_tokens,
    sample_starts,
)
from surgery.operations.edits import RoutingRule

Run = tuple[int, int, bool]
"""Start and end of a run of tokens of one kind, and whether they are image tokens."""


@dataclass(frozen=True)
class Routing:
    """The image tokens of one call.

    Args:
        form: How they are routed; `image` where all tokens are image tokens.
        mask: (B, T), bool, True at tokens of the experts.
        text: Indices of the text tokens in the flattened batch; for gather.
        image: Indices of the image tokens; for gather. Together they are 0 to N - 1.
        runs: Runs of tokens, the same in every row; for segments.
        last_split: The last matrix's input with its text and image tokens, since q, k and v have
            the same input.
    """

    form: str
    mask: torch.Tensor | None = None
    text: torch.Tensor | None = None
    image: torch.Tensor | None = None
    runs: tuple[Run, ...] = ()
    last_split: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = field(
        default_factory=list, repr=False
    )


IMAGE_ONLY: Final = Routing("image")
TEXT_ONLY: Final = None
_ROUTING: Final = CallState[Routing]("routing")

routing_of = _ROUTING.read
"""Routing of a model's current call; None where no token is an image token."""
set_routing = _ROUTING.write


def register_routing(
    base: Any, decoder: Any, expert: Any, rule: RoutingRule, token: int | None
) -> None:
    """Hook a decoder so that it computes its routing at the beginning of each call.

    Args:
        base: The complete model, which may have the ids where the decoder has only embeddings.
        decoder: The module that contains the blocks, which is hooked.
        expert: One of its experts, which knows whether they are active.
        rule: How tokens are routed.
        token: Id of an image token, of the rule or of the model's config; None if unknown.
    """
    register_input_ids(base, decoder, expert)
    if rule.positions == "cogvlm":
        share_positions(decoder, expert._switch)
    begin = functools.partial(_begin, expert, rule, token)
    decoder.register_forward_pre_hook(begin, with_kwargs=True)
    decoder.register_forward_hook(functools.partial(_end, expert), always_call=True)


def register_input_ids(base: Any, decoder: Any, part: Any) -> None:
    """Hook a model so that its decoder, which may get embeddings alone, can read the call's ids.

    Args:
        base: The complete model.
        decoder: The module that contains the blocks.
        part: One of the parts that read the ids, which knows the model's switch.
    """
    if base is not decoder:
        base.register_forward_pre_hook(functools.partial(_note_ids, part), with_kwargs=True)
        base.register_forward_hook(functools.partial(_forget_ids, part), always_call=True)


def find_runs(mask: torch.Tensor) -> tuple[Run, ...]:
    """Runs of tokens of one kind in one row.

    Args:
        mask: (T,), bool.
    """
    values = mask.tolist()
    edges = [0, *(i for i in range(1, len(values)) if values[i] != values[i - 1]), len(values)]
    return tuple((a, b, values[a]) for a, b in itertools.pairwise(edges) if a < b)


def _note_ids(expert: Any, base: Any, args: Any, kwargs: Any) -> None:
    INPUT_IDS.write(expert._switch, kwargs.get("input_ids", args[0] if args else None))


def _forget_ids(expert: Any, base: Any, args: Any, output: Any) -> None:
    INPUT_IDS.write(expert._switch, None)


def _begin(
    expert: Any, rule: RoutingRule, token: int | None, decoder: Any, args: Any, kwargs: Any
) -> None:
    switch = expert._switch
    if expert.disable_adapters:
        _forget(switch)
        return
    ids = kwargs.get("input_ids", args[0] if args else None)
    tokens = kwargs["inputs_embeds"] if ids is None else ids
    cached = cached_tokens(kwargs)
    raw = image_tokens(switch, rule, token, ids, tokens.shape[:2], cached).to(tokens.device)
    starts = sample_starts(kwargs.get("position_ids"), raw)
    if rule.positions == "cogvlm":
        begin_lag(switch, raw, starts, kwargs.get("past_key_values"), cached)
    mask = apply_boundary(raw, rule.boundary, starts)
    static = bool(rule.runs) and torch.compiler.is_compiling() and CALLER_MASK.read(switch) is None
    if rule.form == "segments":
        runs = _planned_runs(rule, tokens.shape[1], cached) if static else _found_runs(mask)
        set_routing(switch, _segments(runs))
    else:
        set_routing(switch, _route(rule, mask))


def _end(expert: Any, decoder: Any, args: Any, output: Any) -> None:
    cache = getattr(output, "past_key_values", None)
    remember_lag(expert._switch, cache)
    _forget(expert._switch)


def _forget(switch: Any) -> None:
    routing = routing_of(switch)
    if routing is not None:
        routing.last_split.clear()
    set_routing(switch, None)
    LAG.write(switch, None)


def _route(rule: RoutingRule, mask: torch.Tensor) -> Routing | None:
    if torch.compiler.is_compiling() and rule.form == "blend":
        return Routing("blend", mask)
    images = int(mask.sum())
    if images == 0:
        return TEXT_ONLY
    if images == mask.numel():
        return IMAGE_ONLY
    if rule.form == "blend":
        return Routing("blend", mask)
    flat = mask.flatten()
    text, image = (~flat).nonzero().squeeze(1), flat.nonzero().squeeze(1)
    return Routing("gather", mask, text, image)


def _segments(runs: tuple[Run, ...]) -> Routing | None:
    kinds = {is_image for _, _, is_image in runs}
    if len(kinds) == 2:
        return Routing("segments", runs=runs)
    return IMAGE_ONLY if True in kinds else TEXT_ONLY


def _found_runs(mask: torch.Tensor) -> tuple[Run, ...]:
    if not torch.equal(mask, mask[:1].expand_as(mask)):
        raise SurgeryError(diagnostic("A411.rows_differ"))
    return find_runs(mask[0])


def _planned_runs(rule: RoutingRule, tokens: int, cached: int) -> tuple[Run, ...]:
    """The runs of the rule, as Python integers, so that a graph of them is static."""
    shorter = 1 if rule.boundary == "cogvlm" else 0
    found: list[Run] = []
    edge = 0
    for start, end in () if cached else rule.runs:
        found += [(edge, start, False), (start, end - shorter, True)]
        edge = end - shorter
    return tuple(run for run in (*found, (edge, tokens, False)) if run[0] < run[1])
