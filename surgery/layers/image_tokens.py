"""Which tokens of a call are image tokens: by the caller's mask, by their id, or by the layout.

Shapes: B rows, T tokens of this call, S tokens of the whole prompt.

Source: CogVLM (arXiv 2311.03079) and its released code for the boundary rule.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.layers.call_state import CallState
from surgery.operations.edits import RoutingRule


@dataclass(frozen=True)
class ImageMask:
    """What the caller said.

    Args:
        mask: bool, True at image tokens; (B, T), or (B, S) along a cache.
        is_prompt: whether it is of the prompt of `generate`, whose rows may be repeated and whose
            later tokens are text.
    """

    mask: torch.Tensor
    is_prompt: bool = False


CALLER_MASK: Final = CallState[ImageMask]("images")
INPUT_IDS: Final = CallState[torch.Tensor]("ids")
"""Token ids that a model around the decoder was called with."""


def cached_tokens(kwargs: Mapping[str, Any]) -> int:
    """How many tokens came before a call with these arguments."""
    cache = kwargs.get("past_key_values")
    return 0 if cache is None else int(cache.get_seq_length())


def image_tokens(
    switch: Any,
    rule: RoutingRule,
    token: int | None,
    ids: torch.Tensor | None,
    shape: Sequence[int],
    cached: int,
) -> torch.Tensor:
    """All image tokens of this call, bool (B, T).

    Args:
        switch: the model's.
        rule: how they are found.
        token: the id that stands for one, or None.
        ids: (B, T), where the call has ids.
        shape: B and T.
        cached: how many tokens came before this call.

    Raises:
        SurgeryError: A410 where nothing tells, A411 for a mask of another shape, or for a prompt
            that isn't laid out as the rule's runs say.
    """
    rows, tokens = shape
    given = CALLER_MASK.read(switch)
    if given is not None:
        return _slice(given, rows, tokens, cached)
    ids = _ids(switch, ids, (rows, tokens))
    by_id = ids == token if token is not None and ids is not None else None
    if rule.runs:
        return _by_layout(rule, by_id, (rows, tokens), cached)
    if by_id is not None:
        return by_id
    if cached:
        return torch.zeros((rows, tokens), dtype=torch.bool)
    raise SurgeryError(_no_way_to_know())


def check_mask(mask: torch.Tensor, shape: Sequence[int] | None) -> None:
    """Refuse a mask that has no row or no column for each row and token.

    Args:
        mask: the caller's.
        shape: B and T of the call; None where it can't be told yet.

    Raises:
        SurgeryError: A411.
    """
    if shape is None:
        shape = mask.shape
    if mask.dim() != 2 or mask.shape[0] != shape[0] or mask.shape[1] < shape[1]:
        raise SurgeryError(bad_mask(tuple(mask.shape), tuple(shape)))


def apply_boundary(
    mask: torch.Tensor, boundary: str, starts: torch.Tensor | None = None
) -> torch.Tensor:
    """Keep an image token only where the next is one too, if the rule is CogVLM's.

    Args:
        mask: bool (B, T).
        boundary: `plain` or `cogvlm`.
        starts: bool (B, T), True where another packed sample begins, whose tokens don't count.
    """
    if boundary == "plain":
        return mask
    following = torch.zeros_like(mask)
    following[:, :-1] = mask[:, 1:]
    if starts is not None:
        following[:, :-1] &= ~starts[:, 1:]
    return mask & following


def sample_starts(positions: Any, mask: torch.Tensor) -> torch.Tensor | None:
    """Where packed samples begin, bool (B, T): where positions fall, or are 0.

    Args:
        positions: position ids (B or 1, T) as the caller gave them; None without.
        mask: bool (B, T), for the shape.
    """
    if not isinstance(positions, torch.Tensor) or positions.dim() != 2:
        return None
    starts = positions == 0
    starts[:, 1:] |= positions[:, 1:] < positions[:, :-1]
    return starts.to(mask.device).expand_as(mask)


def _ids(switch: Any, ids: torch.Tensor | None, shape: tuple[int, int]) -> torch.Tensor | None:
    """The call's own ids, or those that a model around it was called with."""
    outer = INPUT_IDS.read(switch) if ids is None else ids
    return outer if outer is not None and tuple(outer.shape) == shape else None


def _by_layout(
    rule: RoutingRule, by_id: torch.Tensor | None, shape: tuple[int, int], cached: int
) -> torch.Tensor:
    mask = torch.zeros(shape, dtype=torch.bool)
    for start, end in rule.runs if cached == 0 else ():
        mask[:, start:end] = True
    if torch.compiler.is_compiling():
        return mask
    beyond = cached == 0 and rule.runs[-1][1] > shape[1]
    if beyond or (by_id is not None and not torch.equal(by_id.cpu(), mask)):
        raise SurgeryError(_other_layout(rule))
    return mask


def _slice(given: ImageMask, rows: int, tokens: int, cached: int) -> torch.Tensor:
    mask, expected = given.mask, (rows, tokens)
    if given.is_prompt:
        repeats = rows // max(mask.shape[0], 1)
        mask = mask.repeat_interleave(repeats, dim=0) if repeats > 1 else mask
        part = mask[:, cached : cached + tokens]
        mask = torch.nn.functional.pad(part, (0, tokens - part.shape[1]))
    elif cached and tuple(mask.shape) == (rows, cached + tokens):
        mask = mask[:, cached:]
    if tuple(mask.shape) != expected:
        raise SurgeryError(bad_mask(tuple(given.mask.shape), expected))
    return mask


def _no_way_to_know() -> Diagnostic:
    return Diagnostic(
        code="A410",
        what="this model has parts for image tokens and can't know which tokens those are",
        why="the recipe names no `image_token_id`, the model's config has none, and no mask came "
        "with the call",
        fix="set `image_token_id` in the recipe's operation, or call the model with `image_mask=` "
        "(rows, tokens); a prompt without an image takes `torch.zeros_like(input_ids)`",
    )


def bad_mask(found: tuple[int, ...], expected: tuple[int, ...]) -> Diagnostic:
    """What is wrong with a mask of another shape than the tokens."""
    return Diagnostic(
        code="A411",
        what=f"`image_mask` has the shape {list(found)} for tokens of shape {list(expected)}",
        why="it says of each token whether it is an image token",
        fix="give it one row for each row and one column for each token",
    )


def _other_layout(rule: RoutingRule) -> Diagnostic:
    return Diagnostic(
        code="A411",
        what=f"the image tokens of this prompt are not at {[list(run) for run in rule.runs]}",
        why="`runs` fixes their places in every row of every prompt, padding included",
        fix="lay the prompt out like that, pass `image_mask`, or use `form=gather` without `runs`",
    )
