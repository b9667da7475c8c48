"""Whether two engines choose the same words, where rounding lets them."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def logits(loop: Any, ids: Sequence[int], words: Sequence[int], features: Any = None) -> np.ndarray:
    """Logits (words, V) behind a prompt, and behind each of these words but the last.

    Args:
        loop: a new one.
        ids: of the prompt.
        words: that are said, whatever the loop would say.
        features: of the prompt's images.
    """
    read = loop.read(ids, features)
    return np.stack([read, *(loop.step("decode", [word]) for word in words[:-1])])


def same_tokens(reference: np.ndarray, found: np.ndarray) -> None:
    """The likeliest words are the same; one may be a tie, a hundredth of the logits' spread."""
    chosen = found.argmax(-1)
    lead = reference.max(-1) - np.take_along_axis(reference, chosen[:, None], -1)[:, 0]
    for one, other in zip(reference, found, strict=True):
        assert np.corrcoef(one, other)[0, 1] > 0.9999
    assert (lead < 0.01 * reference.std(-1)).all()
    assert (lead > 0).sum() <= 1
