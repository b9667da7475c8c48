"""Words that pick decoder blocks: `skip 1/4`, `every 4 from 0`, `4-11`, `[0, 5, -1]`.

Positions are the base's own, from 0. `skip n/d` picks block i where floor((i+1)n/d) > floor(i*n/d):
the last block of each group, as OpenFlamingo places its cross-attention ((i+1) % k == 0), because
GenieBlue (arXiv 2503.06019) cites that idea and doesn't print its own indices.
"""

import re
from collections.abc import Callable
from typing import Annotated, Final

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

REST: Final = "rest"
GRAMMAR: Final = (
    "all, none, rest, pre n/d, post n/d, skip n/d, every k, every k from j, i-j, or [i, j, -1]"
)

_Picker = Callable[[re.Match[str], int], range | list[int]]


def _share(match: re.Match[str], count: int) -> int:
    return count * int(match["n"]) // int(match["d"])


def _skip(match: re.Match[str], count: int) -> list[int]:
    n, d = int(match["n"]), int(match["d"])
    return [i for i in range(count) if (i + 1) * n // d > i * n // d]


def _every(match: re.Match[str], count: int) -> range:
    step = int(match["k"])
    return range(step - 1 if match["j"] is None else int(match["j"]), count, step)


_PICKERS: Final[dict[re.Pattern[str], _Picker]] = {
    re.compile(r"all"): lambda match, count: range(count),
    re.compile(r"none"): lambda match, count: range(0),
    re.compile(r"pre (?P<n>\d+)/(?P<d>\d+)"): lambda m, count: range(_share(m, count)),
    re.compile(r"post (?P<n>\d+)/(?P<d>\d+)"): lambda m, count: range(
        count - _share(m, count), count
    ),
    re.compile(r"skip (?P<n>\d+)/(?P<d>\d+)"): _skip,
    re.compile(r"every (?P<k>\d+)(?: from (?P<j>\d+))?"): _every,
    re.compile(r"(?P<i>\d+)-(?P<j>\d+)"): lambda m, count: range(int(m["i"]), int(m["j"]) + 1),
}


def _match(words: str) -> tuple[re.Match[str], _Picker] | None:
    normal = " ".join(words.split())
    matches = ((pattern.fullmatch(normal), picker) for pattern, picker in _PICKERS.items())
    return next(((match, picker) for match, picker in matches if match), None)


def _fault(match: re.Match[str]) -> str | None:
    numbers = {name: int(value) for name, value in match.groupdict().items() if value is not None}
    if "d" in numbers and not 0 < numbers["n"] <= numbers["d"]:
        return f"{numbers['n']}/{numbers['d']} is not a fraction above 0 and up to 1"
    if numbers.get("k") == 0:
        return "every 0 picks nothing"
    if "i" in numbers and numbers["i"] > numbers["j"]:
        return f"the range {numbers['i']}-{numbers['j']} runs backwards"
    return None


def check_selector(selector: str | tuple[int, ...]) -> str | tuple[int, ...]:
    """Return `selector` if it is one, whatever the model.

    Raises:
        PydanticCustomError: of type `selector`, which pydantic reports with its place.
    """
    if isinstance(selector, tuple) or selector.strip() == REST:
        return selector
    found = _match(selector)
    fault = _fault(found[0]) if found else f"`{selector}` is not a block selector"
    if fault:
        raise PydanticCustomError("selector", "{fault}", {"fault": fault})
    return selector


Blocks = Annotated[
    Annotated[tuple[int, ...], Field(strict=False)] | str, AfterValidator(check_selector)
]
"""The pydantic type of a selector in a recipe."""


def pick_blocks(selector: str | tuple[int, ...], count: int) -> tuple[int, ...]:
    """Return the positions that a selector other than `rest` picks, ascending.

    Args:
        selector: the words, or positions where -1 is the last block.
        count: how many blocks the model has.

    Raises:
        IndexError: with a sentence, if a named position is not in the model.
    """
    if isinstance(selector, tuple):
        wanted: range | list[int] = list(selector)
    else:
        found = _match(selector)
        if found is None:
            raise ValueError(f"{selector!r} is not a block selector")
        wanted = found[1](found[0], count)
    missing = [i for i in wanted if not -count <= i < count]
    if missing:
        raise IndexError(f"there is no block {missing[0]}: the model has blocks 0 to {count - 1}")
    return tuple(sorted({i % count for i in wanted}))
