"""Selectors of decoder blocks: `skip 1/4`, `every 4 from 0`, `4-11`, `[0, 5, -1]`.

`of NAME` after any of them but the indices keeps only the blocks that have such matrices, and
fractions count among those: `skip 1/4 of attention`. Indices are the base's own, from 0. `skip n/d`
picks block i where floor((i+1)n/d) > floor(i*n/d): the last block of each group, as OpenFlamingo
places its cross-attention ((i+1) % k == 0), because GenieBlue (arXiv 2503.06019) cites that idea
and doesn't print its own indices.
"""

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Final

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

REST: Final = "rest"
_OF: Final = re.compile(r"(.+?) of ([A-Za-z0-9_]+)")
_Picker = Callable[[re.Match[str], int], range | list[int]]
BlocksWith = Callable[[str], Sequence[int]]
"""From the name of a part or role to the ascending indices of the blocks that have it."""


def _share(match: re.Match[str], count: int) -> int:
    return count * int(match["n"]) // int(match["d"])


def _skip(match: re.Match[str], count: int) -> list[int]:
    n, d = int(match["n"]), int(match["d"])
    return [i for i in range(count) if (i + 1) * n // d > i * n // d]


def _every(match: re.Match[str], count: int) -> range:
    step, start = int(match["k"]), match.groupdict().get("j")
    return range(step - 1 if start is None else int(start), count, step)


_PICKERS: Final[dict[str, _Picker]] = {
    "all": lambda match, count: range(count),
    "none": lambda match, count: range(0),
    "pre n/d": lambda match, count: range(_share(match, count)),
    "post n/d": lambda match, count: range(count - _share(match, count), count),
    "skip n/d": _skip,
    "every k": _every,
    "every k from j": _every,
    "i-j": lambda match, count: range(int(match["i"]), int(match["j"]) + 1),
}
GRAMMAR: Final = (
    f"{', '.join(_PICKERS)}, {REST}, any of them followed by `of NAME`, "
    "or indices such as [0, 5, -1]"
)
"""All forms of a selector, in one line."""


def _pattern(expression: str) -> re.Pattern[str]:
    """Match a number for each single letter; nine digits are more than any model has blocks."""
    return re.compile(re.sub(r"\b[a-z]\b", r"(?P<\g<0>>[0-9]{1,9})", expression))


_PATTERNS: Final = {_pattern(expression): picker for expression, picker in _PICKERS.items()}


def _match(expression: str) -> tuple[re.Match[str], _Picker] | None:
    matches = ((pattern.fullmatch(expression), picker) for pattern, picker in _PATTERNS.items())
    return next(((match, picker) for match, picker in matches if match), None)


def _fault(selector: object) -> str | None:
    if isinstance(selector, tuple):
        wrong = [position for position in selector if type(position) is not int]
        return f"an index is a whole number, and {wrong[0]!r} is none" if wrong else None
    if type(selector) is int:
        return f"a single block is written as a list: [{selector}]"
    expression = _split(selector)[0] if isinstance(selector, str) else ""
    found = _match(expression)
    if found:
        return _fault_of_numbers(found[0])
    return None if expression == REST else f"{_quoted(selector)} is not a block selector"


def _fault_of_numbers(match: re.Match[str]) -> str | None:
    numbers = {name: int(value) for name, value in match.groupdict().items() if value is not None}
    if "d" in numbers and not 0 < numbers["n"] <= numbers["d"]:
        return f"{numbers['n']}/{numbers['d']} is not a fraction above 0 and up to 1"
    if numbers.get("k") == 0:
        return "every 0 picks nothing"
    if "i" in numbers and numbers["i"] > numbers["j"]:
        return f"the range {numbers['i']}-{numbers['j']} runs backwards"
    return None


def _quoted(selector: object) -> str:
    if selector is None:
        return "an empty value"
    return f"`{selector}`" if isinstance(selector, str) else f"{selector!r}"


def read_selector(selector: object) -> object:
    """Validate a selector, independent of the model, and normalize its spaces.

    Args:
        selector: Value of `blocks` in a recipe.

    Raises:
        PydanticCustomError: Of type `selector`, which pydantic reports with its location.
    """
    if isinstance(selector, list):
        selector = tuple(selector)
    elif isinstance(selector, str):
        selector = " ".join(selector.split())
    fault = _fault(selector)
    if fault:
        raise PydanticCustomError("selector", "{fault}", {"fault": fault})
    return selector


Blocks = Annotated[
    Annotated[tuple[int, ...], Field(strict=False)] | str, BeforeValidator(read_selector)
]
"""The pydantic type of a selector in a recipe."""


def _split(selector: str) -> tuple[str, str]:
    """Split at `of`; the second part is empty where there is none."""
    found = _OF.fullmatch(selector)
    return (found[1], found[2]) if found else (selector, "")


def is_rest(selector: str | tuple[int, ...]) -> bool:
    """Whether a selector means the blocks that no other operation picks."""
    return isinstance(selector, str) and _split(selector)[0] == REST


def pick_blocks(
    selector: str | tuple[int, ...], count: int, blocks_with: BlocksWith | None = None
) -> tuple[int, ...]:
    """Return the indices that a selector picks, ascending; for `rest`, all candidates.

    Args:
        selector: Selector in text form, or indices, where -1 is the last block.
        count: Number of blocks of the model.
        blocks_with: From the name after `of` to the blocks that have such matrices.

    Raises:
        IndexError: If a given index is not in the model.
        LookupError: If no block has what `of` names.
    """
    if isinstance(selector, tuple):
        return _in_model(selector, count)
    expression, kind = _split(" ".join(selector.split()))
    found = _match("all" if expression == REST else expression)
    if found is None:
        raise ValueError(f"{selector!r} is not a block selector")
    match, picker = found
    blocks = _candidates(kind, count, blocks_with)
    if "i" in match.groupdict():
        named = _in_model(picker(match, count), count)
        return tuple(block for block in named if block in blocks)
    return tuple(blocks[i] for i in picker(match, len(blocks)))


def _candidates(kind: str, count: int, blocks_with: BlocksWith | None) -> tuple[int, ...]:
    blocks = tuple(blocks_with(kind)) if kind and blocks_with else tuple(range(count))
    if kind and not blocks:
        raise LookupError(f"no block has {kind}")
    return blocks


def _in_model(wanted: Sequence[int], count: int) -> tuple[int, ...]:
    missing = next((i for i in wanted if not -count <= i < count), None)
    if missing is not None:
        raise IndexError(f"there is no block {missing}: the model has blocks 0 to {count - 1}")
    return tuple(sorted({i % count for i in wanted}))
