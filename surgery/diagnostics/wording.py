"""Phrases that many messages share: an error's first line, similar names, counted nouns."""

import difflib
from collections.abc import Iterable


def first_line(error: object) -> str:
    """The first line of an error's message; its type's name where the message is empty.

    Of an `OSError` the reason alone, since the path is in the sentence around it.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def named_line(error: BaseException) -> str:
    """The name of an error's type, and the first line of its message, if there is one."""
    name, text = type(error).__name__, first_line(error)
    return text if text == name else f"{name}: {text}"


def suggestion(names: Iterable[str]) -> str:
    """`did you mean a or b?`, for one name or several; empty for none."""
    quoted = [f"`{name}`" for name in names]
    return f"did you mean {' or '.join(quoted)}?" if quoted else ""


def close_names(name: str, known: Iterable[str], limit: int = 1) -> list[str]:
    """The known names that are spelled most like a given one, the nearest first; often none.

    Args:
        name: Name as it was typed.
        known: Names to compare with.
        limit: Largest number of names to return; 1 by default.
    """
    return difflib.get_close_matches(name, list(known), limit)


def suggest(name: str, known: Iterable[str], limit: int = 1) -> str:
    """`did you mean …?` with the most similar known names; empty where none is similar.

    Args: as `close_names`.
    """
    return suggestion(close_names(name, known, limit))


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number with its noun, such as `1 block` and `2,000 blocks`.

    Args:
        count: A number from 0.
        noun: The singular.
        plural: The plural; by default the singular with an s.
    """
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def nearest(name: str, known: Iterable[str]) -> str:
    """A fix that names the most similar known name, or all of them."""
    names = list(known)
    return suggest(name, names) or f"known are {', '.join(names)}"
