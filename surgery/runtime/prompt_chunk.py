"""A prompt split into chunks of static length, and what becomes known of each. numpy alone.

Shapes: T tokens of a chunk, D width of the hidden state.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

Arrays = dict[str, Any]
Phase = Literal["prefill", "decode"]


@dataclass(frozen=True)
class Features:
    """What the images of a prompt became.

    Args:
        token: the id whose positions they take.
        rows: (positions, D), in the order of the positions.
    """

    token: int
    rows: Any


@dataclass(frozen=True)
class PromptChunk:
    """Some tokens that go through all parts at once.

    Args:
        phase: of the graphs that take it.
        start: tokens before it.
        count: of its own, at most T; what comes after them only fills it up.
        known: arrays by name: `ids` and `positions` (1, T), and whatever parts have given. With
            images `is_image` (T) and `features`, a row for each place that is one.
    """

    phase: Phase
    start: int
    count: int
    known: Mapping[str, Any]

    def knowing(self, found: Mapping[str, Any]) -> "PromptChunk":
        """The same chunk, of which more is known."""
        return replace(self, known={**self.known, **found})


def prompt_chunks(
    ids: Sequence[int], phase: Phase, length: int, start: int, features: Features | None = None
) -> Iterator[PromptChunk]:
    """Split tokens into chunks.

    Args:
        ids: of the tokens.
        phase: of the graphs.
        length: T.
        start: tokens before them.
        features: of the images among them.
    """
    seen = 0
    for first in range(0, len(ids), length):
        chunk = _chunk(ids[first : first + length], phase, length, start + first)
        if features:
            is_image = chunk.known["ids"][0] == features.token
            is_image[chunk.count :] = False
            rows = features.rows[seen : seen + is_image.sum()]
            seen += len(rows)
            chunk = chunk.knowing({"is_image": is_image, "features": rows})
        yield chunk


def _chunk(ids: Sequence[int], phase: Phase, length: int, start: int) -> PromptChunk:
    filled = np.zeros((1, length), np.int64)
    filled[0, : len(ids)] = ids
    offsets = np.minimum(np.arange(length), len(ids) - 1)  # none is outside of a learned table
    positions = (start + offsets)[None].astype(np.int64)
    return PromptChunk(phase, start, len(ids), {"ids": filled, "positions": positions})
