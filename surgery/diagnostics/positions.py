"""Positions of blocks as a person writes them: `0-2,4-6`, and only the ends of a long list."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Final

_MOST: Final = 24
_SHOWN: Final = 3


def in_ranges(positions: Iterable[int]) -> str:
    """Return ascending positions as ranges; of more than 24, the first three and the last."""
    numbered = enumerate(positions)
    runs = [[p for _, p in run] for _, run in groupby(numbered, key=lambda pair: pair[1] - pair[0])]
    shown = [_range(run) for run in runs]
    if len(runs) > _MOST:
        shown = [*shown[:_SHOWN], "…", shown[-1]]
    return ",".join(shown)


def _range(run: Sequence[int]) -> str:
    return f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0])
