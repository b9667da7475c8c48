"""Parts of sentences that many share: what an error says, what was meant instead, how many."""

import difflib
from collections.abc import Iterable


def first_line(error: object) -> str:
    """The first line of what an error says; its type's name where it says nothing.

    Of what the operating system refuses, its reason alone: the path stands in the sentence around.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def named_line(error: BaseException) -> str:
    """The name of an error's type, and the first line of what it says, if it says anything."""
    name, text = type(error).__name__, first_line(error)
    return text if text == name else f"{name}: {text}"


def suggestion(names: Iterable[str]) -> str:
    """`did you mean a or b?`, for one name or several; empty for none."""
    quoted = [f"`{name}`" for name in names]
    return f"did you mean {' or '.join(quoted)}?" if quoted else ""


def close_names(name: str, known: Iterable[str], most: int = 1) -> list[str]:
    """The known names that are spelled most like a given one, the nearest first; often none.

    Args:
        name: Name as it was typed.
        known: names that could be meant.
        most: how many are returned.
    """
    return difflib.get_close_matches(name, list(known), most)


def suggest(name: str, known: Iterable[str], most: int = 1) -> str:
    """The question whether a known name was meant; empty where none is near.

    Args: as `close_names`.
    """
    return suggestion(close_names(name, known, most))


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number with its noun, such as `1 block` and `2,000 blocks`.

    Args:
        count: 0 or more.
        noun: the singular.
        plural: where it isn't the singular with an s.
    """
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def nearest(name: str, known: Iterable[str]) -> str:
    """A remedy: the nearest known name, or all of them."""
    names = list(known)
    return suggest(name, names) or f"known are {', '.join(names)}"
