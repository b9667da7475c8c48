"""One `key=value` of a command line: whose key it is, and how Hydra is to be told.

A bare key is a field of the recipe first, then a knob. Every override is handed on as
`++key=value`, because Hydra refuses to set a key that the YAML doesn't mention; whether the key may
exist is for the schema to say.
"""

import difflib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override as HydraOverride
from hydra.core.override_parser.types import RangeSweep
from hydra.errors import HydraException

from surgery.diagnostic import Diagnostic, Span
from surgery.recipe import Recipe
from surgery.source import Key

FIELDS: Final = tuple(name for name in Recipe.model_fields if name != "name")
_QUOTED: Final = ("'", '"', "[", "{", "$")
MOST_VALUES: Final = 10_000
"""How many values a sweep takes for one key."""

_PLACES: Final = ("model", "vision", "file", "images")
_STEP: Final = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Override:
    """An override that Hydra understands.

    Args:
        typed: what the user wrote.
        path: the key's path in the recipe.
        hydra: the words for Hydra.
        choices: the values of a sweep, `placement=pre,post`, as Hydra's words; else empty.
    """

    typed: str
    path: Key
    hydra: str
    choices: tuple[str, ...] = ()


def read_override(number: int, typed: str, knobs: Iterable[str]) -> Override | Diagnostic:
    """Read one override, or say what is wrong with it.

    Args:
        number: its 1-based position on the command line.
        typed: such as `placement=post`, `operations.copies.blocks=pre 1/3`, `~operations.copies`.
        knobs: the knobs that the recipe has.
    """
    name, equals, value = typed.partition("=")
    key = name.lstrip("+~")
    if not equals and not name.startswith("~"):
        return _not_a_pair(number, typed)
    path = _path(key, knobs)
    if path is None:
        return _unknown_key(number, typed, key, knobs)
    if name.startswith("~"):
        return Override(typed, path, f"~{'.'.join(path)}")
    if _is_a_place(path, value):
        return Override(typed, path, f"++{'.'.join(path)}={_literal(value)}")
    try:
        parsed = _parse(f"++{'.'.join(path)}", value)
        choices = _choices(parsed) if parsed.is_sweep_override() else ()
    except ValueError as error:
        return _bad_value(number, typed, str(error))
    return Override(typed, path, parsed.input_line or typed, choices)


def span_of(number: int, typed: str, *, value: bool) -> Span:
    """The place of an override's key or value on the command line."""
    name, _, words = typed.partition("=")
    bare = name.lstrip("+~")
    file = f"<override {number}>"
    if value and words:
        return Span(file, 1, len(name) + 2, typed, len(words))
    return Span(file, 1, len(name) - len(bare) + 1, typed, max(1, len(bare)))


def _path(key: str, knobs: Iterable[str]) -> Key | None:
    path = tuple(key.split("."))
    if path[0] in FIELDS:
        return path if all(map(_STEP.fullmatch, path)) else None
    return ("knobs", key) if key in set(knobs) else None


def _parse(key: str, value: str) -> HydraOverride:
    """Parse, quoting once a value such as `/a b/c=d` that the grammar takes only in quotes.

    Raises:
        ValueError: with the reason, where that helps nothing.
    """
    parser = OverridesParser.create()
    try:
        return parser.parse_override(f"{key}={value}")
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except HydraException as error:
        reason = str(error).strip().splitlines()[0]
    if value.startswith(_QUOTED):
        raise ValueError(reason)
    try:
        return parser.parse_override(f"{key}={_quoted(value)}")
    except HydraException:
        raise ValueError(reason) from None


def _quoted(value: str) -> str:
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', value)  # a backslash only counts before a quote
    escaped += "\\" * (len(escaped) - len(escaped.rstrip("\\")))
    return f'"{escaped}"'


def _choices(parsed: HydraOverride) -> tuple[str, ...]:
    """The values of a sweep.

    Raises:
        ValueError: with a sentence, where there are none, or more than any sweep runs.
    """
    swept = parsed.value()
    if isinstance(swept, RangeSweep) and not swept.step:
        raise ValueError("a range with steps of 0 has no end")
    if isinstance(swept, RangeSweep) and not _steps(swept) < MOST_VALUES:
        raise ValueError(f"a sweep takes at most {MOST_VALUES:,} values")
    try:
        found = tuple(map(str, parsed.sweep_string_iterator()))
    except HydraException:
        why = "glob and interval name no values that can be listed; choice and range do"
        raise ValueError(why) from None
    if not found:
        raise ValueError("it names no value at all")
    return found


def _steps(swept: RangeSweep) -> float:
    assert swept.start is not None
    assert swept.stop is not None
    return float((swept.stop - swept.start) / swept.step)


def _is_a_place(path: Key, value: str) -> bool:
    """Whether a key takes a path, and a file or folder bears the value as its name to the letter.

    Such a name may have commas, which else mean a sweep, and `${`, which else means another key.
    """
    takes_one = path[-1] in _PLACES or "data" in path
    return takes_one and os.path.lexists(os.path.expanduser(_bare(value)))


def _bare(value: str) -> str:
    is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return value[1:-1] if is_quoted else value


def _literal(value: str) -> str:
    """A value as Hydra's grammar and then OmegaConf's read it, with nothing in it meaning more."""
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", _bare(value))
    return _quoted(text)


def _not_a_pair(number: int, typed: str) -> Diagnostic:
    return Diagnostic(
        code="R110",
        what=f"`{typed}` is not an override",
        why="an override is written key=value",
        fix=f"write `{typed}=VALUE`, or `~{typed}` to take the key out"
        if typed
        else "leave it out",
        span=span_of(number, typed, value=False),
    )


def _unknown_key(number: int, typed: str, key: str, knobs: Iterable[str]) -> Diagnostic:
    known, first = [*FIELDS, *knobs], key.partition(".")[0]
    close = difflib.get_close_matches(first.strip().lower(), known, n=1)
    if first in FIELDS:
        why = "a dotted name is made of letters, digits, _ and - between single dots"
    elif first.startswith("hydra"):
        why = "settings of Hydra are for `surgery sweep`"
    else:
        why = f"its knobs are {', '.join(knobs) or 'none'}; its fields are {', '.join(FIELDS)}"
    return Diagnostic(
        code="R109",
        what=f"the recipe has no field or knob `{key if first in FIELDS else first}`",
        why=why,
        fix=f"did you mean `{close[0]}`?"
        if close and close[0] != first
        else "set a knob, or a field by its dotted name",
        span=span_of(number, typed, value=False),
    )


def _bad_value(number: int, typed: str, reason: str) -> Diagnostic:
    name, _, value = typed.partition("=")
    if value.startswith(("[", "{")):
        fix = 'close its brackets, and quote words in it that have other signs: ["a b", "c=d"]'
    else:
        fix = f"close its quotes and brackets, or quote it whole: '{name}=\"TEXT\"'"
    return Diagnostic(
        code="R110",
        what=f"the value of `{name}` can't be read",
        why=reason,
        fix=fix,
        span=span_of(number, typed, value=True),
    )
