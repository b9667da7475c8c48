"""How long something takes, so that a busy or a slow machine changes nothing of the answer."""

import time
from collections.abc import Callable


def growth(work: Callable[[int], object], small: int, large: int) -> float:
    """How many times as long the large work takes as the small one.

    In seconds of the processor, the best of two runs each, after a first one that imports.
    """
    work(small)
    return seconds(work, large) / seconds(work, small)


def seconds(work: Callable[[int], object], size: int) -> float:
    """Seconds of the processor, the best of two."""
    spent = []
    for _ in range(2):
        begun = time.process_time()
        work(size)
        spent.append(time.process_time() - begun)
    return min(spent)
