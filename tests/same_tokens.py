"""Whether two engines choose the same tokens, where rounding lets them."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def logits(
    loop: Any, ids: Sequence[int], tokens: Sequence[int], features: Any = None
) -> np.ndarray:
    """Logits (tokens, V) after a prompt, and after each of these tokens but the last.

    Args:
        loop: A new decoding loop.
        ids: Token ids of the prompt.
        tokens: Continuation to feed, whatever the loop would generate.
        features: Features of the prompt's images.
    """
    read = loop.read(ids, features)
    return np.stack([read, *(loop.step("decode", [token]) for token in tokens[:-1])])


def same_tokens(reference: np.ndarray, found: np.ndarray) -> None:
    """The likeliest tokens are the same; one may be a tie, a hundredth of the logits' spread."""
    chosen = found.argmax(-1)
    lead = reference.max(-1) - np.take_along_axis(reference, chosen[:, None], -1)[:, 0]
    for one, other in zip(reference, found, strict=True):
        assert np.corrcoef(one, other)[0, 1] > 0.9999
    assert (lead < 0.01 * reference.std(-1)).all()
    assert (lead > 0).sum() <= 1
