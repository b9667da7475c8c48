"""Which tokens of a call are image tokens: by the caller's mask, by their id, or by the layout.

Shapes: B rows, T tokens of this call, S tokens of the complete prompt.

Source: CogVLM (arXiv 2311.03079) and its released code for the boundary rule.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.layers.call_state import CallState
from surgery.operations.edits import RoutingRule


@dataclass(frozen=True)
class ImageMask:
    """The caller's mask of the image tokens.

    Args:
        mask: (B, T), or (B, S) with a cache, bool, True at image tokens.
        is_prompt: Whether it belongs to the prompt of `generate`, whose rows may be repeated and
            whose later tokens are text; False by default.
    """

    mask: torch.Tensor
    is_prompt: bool = False


CALLER_MASK: Final = CallState[ImageMask]("images")
INPUT_IDS: Final = CallState[torch.Tensor]("ids")
"""Token ids that a model around the decoder was called with."""


def cached_tokens(kwargs: Mapping[str, Any]) -> int:
    """Number of tokens in the cache before a call with these arguments."""
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
    """All image tokens of this call, (B, T), bool.

    Args:
        switch: The model's switch.
        rule: How they are found.
        token: Id of an image token; None if unknown.
        ids: (B, T) token ids, where the call has them.
        shape: B and T.
        cached: Number of tokens before this call.

    Raises:
        SurgeryError: A410 where nothing tells, A411 for a mask of another shape, or for a prompt
            with another layout than the rule's runs.
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
    raise SurgeryError(diagnostic("A410"))


def check_mask(mask: torch.Tensor, shape: Sequence[int] | None) -> None:
    """Refuse a mask without a row for each row or a column for each token.

    Args:
        mask: The caller's mask.
        shape: B and T of the call; None where they are unknown.

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
        mask: (B, T), bool.
        boundary: `plain` or `cogvlm`.
        starts: (B, T), bool, True where another packed sample begins, whose tokens don't count;
            None without packing.
    """
    if boundary == "plain":
        return mask
    following = torch.zeros_like(mask)
    following[:, :-1] = mask[:, 1:]
    if starts is not None:
        following[:, :-1] &= ~starts[:, 1:]
    return mask & following


def sample_starts(positions: Any, mask: torch.Tensor) -> torch.Tensor | None:
    """First tokens of packed samples, (B, T), bool: where positions decrease, or are 0.

    Args:
        positions: Position ids (B or 1, T) of the caller; None without.
        mask: (B, T), bool, for the shape.
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
        raise SurgeryError(diagnostic("A411.other_layout", runs=[list(run) for run in rule.runs]))
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


def bad_mask(found: tuple[int, ...], expected: tuple[int, ...]) -> Diagnostic:
    """The error of a mask of another shape than the tokens."""
    return diagnostic("A411.shape", found=list(found), expected=list(expected))
