"""CogVLM's positions: all patches of an image share one, its first and last token have their own.

Only the rotary embedding gets them. Everything else, such as the detection of packed samples in the
position ids, uses the model's own.

Shapes: B rows, T tokens of this call.

Source: CogVLM (arXiv 2311.03079), `build_position_ids` of its released code.
"""

import functools
from typing import Any, Final

import torch

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.layers.call_state import CallState

LAG: Final = CallState[torch.Tensor]("lag")
"""(B, T), by how much each token's position is less than its index in the row."""

_ON_CACHE: Final = "_surgery_lag"


def share_positions(decoder: Any, switch: Any) -> None:
    """Hook a decoder's rotary embedding so that it subtracts `LAG`.

    Raises:
        SurgeryError: A418, if it has none of its own.
    """
    rotary = getattr(decoder, "rotary_emb", None)
    if rotary is None:
        raise SurgeryError(diagnostic("A418.no_rotary", name=type(decoder).__name__))
    rotary.register_forward_pre_hook(functools.partial(_shift, switch), with_kwargs=True)


def position_lag(mask: torch.Tensor, starts: torch.Tensor | None) -> torch.Tensor:
    """Number of positions that image tokens have shared so far in each row, (B, T).

    Args:
        mask: (B, T), bool, True at all image tokens, those of begin and end included.
        starts: (B, T), bool, True where a packed sample begins, whose positions restart.
    """
    before, after = torch.zeros_like(mask), torch.zeros_like(mask)
    before[:, 1:], after[:, :-1] = mask[:, :-1], mask[:, 1:]
    if starts is not None:
        before = before & ~starts
        after[:, :-1] &= ~starts[:, 1:]
    inner = mask & before & after
    follows = torch.zeros_like(mask)
    follows[:, 1:] = inner[:, :-1]
    lag = (inner & follows).long().cumsum(dim=1)
    if starts is None:
        return lag
    return lag - torch.where(starts, lag, 0).cummax(dim=1).values


def begin_lag(switch: Any, mask: torch.Tensor, starts: Any, cache: Any, cached: int) -> None:
    """Compute the lag of a call, continuing from the last token in the cache."""
    lag = position_lag(mask, starts)
    earlier = getattr(cache, _ON_CACHE, None) if cached else None
    if earlier is not None:
        repeats = lag.shape[0] // earlier.shape[0]
        lag = lag + earlier.to(lag.device).repeat_interleave(repeats, dim=0)
    LAG.write(switch, lag)
    remember_lag(switch, cache)


def remember_lag(switch: Any, cache: Any) -> None:
    """Store the last token's lag (B, 1) on the cache that was filled."""
    lag = LAG.read(switch)
    if cache is not None and lag is not None:
        setattr(cache, _ON_CACHE, lag[:, -1:])


def _shift(switch: Any, rotary: Any, args: Any, kwargs: Any) -> Any:
    lag = LAG.read(switch)
    if lag is None:
        return None
    if "position_ids" in kwargs:
        return args, {**kwargs, "position_ids": _behind(kwargs["position_ids"], lag)}
    hidden, positions, *others = args
    return (hidden, _behind(positions, lag), *others), kwargs


def _behind(positions: torch.Tensor, lag: torch.Tensor) -> torch.Tensor:
    if positions.dim() != 2:
        raise SurgeryError(diagnostic("A418.axes", axes=positions.dim()))
    return positions - lag.to(positions.device)
