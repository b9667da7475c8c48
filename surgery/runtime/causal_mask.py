"""The mask of one step with a static cache, in numpy: what is added to the scores of attention.

Shapes: T tokens of the step, W positions in the cache. Of these the first `start` are taken;
padding of the step comes after its tokens, so that causality alone hides it.
"""

from typing import Any, Final

import numpy as np

LOWEST: Final = -1e4
"""Added where attention must not look: e to that is 0 in fp16 too, which has no -1e38."""


def causal_mask(tokens: int, window: int, start: int, sliding: int | None = None) -> Any:
    """Return the mask of a step.

    Args:
        tokens: T.
        window: W.
        start: tokens in the cache.
        sliding: how many tokens back one sees, itself among them; None for all.

    Returns:
        fp32, (1, 1, T, W + T): 0 where a token sees another, `LOWEST` elsewhere.
    """
    cached = np.arange(window)
    queries = start + np.arange(tokens)
    keys = np.concatenate([np.where(cached < start, cached, start + tokens), queries])
    back = queries[:, None] - keys[None, :]
    visible = (back >= 0) & (back < (sliding or start + tokens + 1))
    return np.where(visible, 0, LOWEST).astype(np.float32)[None, None]


def sliding_of(mask: Any) -> int | None:
    """Find how far a model's own mask lets a token see.

    Args:
        mask: (1, 1, T, T), of a first step as long as any may be.

    Returns:
        How many tokens back, itself among them; None where it sees all.

    Raises:
        ValueError: where it is no mask of this kind, as one whose tokens see later ones.
    """
    mask = np.asarray(mask)
    tokens = mask.shape[-1]
    visible = int((mask[0, 0, -1] == 0).sum())
    sliding = visible if visible < tokens else None
    if mask.shape != (1, 1, tokens, tokens) or (mask != causal_mask(tokens, 0, 0, sliding)).any():
        raise ValueError("its mask is neither causal nor a sliding window")
    return sliding
