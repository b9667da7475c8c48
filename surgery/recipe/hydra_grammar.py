"""Values in the grammar of Hydra's overrides: parse, quote, and convert from Python."""

import re
from collections.abc import Mapping
from typing import Final

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override as HydraOverride
from hydra.core.override_parser.types import RangeSweep
from hydra.errors import HydraException

from surgery.diagnostics.wording import first_line

MAX_VALUES: Final = 10_000
"""Largest number of values of a sweep for one key."""

_QUOTED: Final = ("'", '"', "[", "{", "$")


def read_value(typed: str) -> tuple[str, tuple[str, ...]]:
    """Return a value in Hydra's grammar, and each of the choices of a sweep; empty for one value.

    Raises:
        ValueError: With the reason, where it can't be parsed.
    """
    parsed = _parse(typed)
    choices = _choices(parsed) if parsed.is_sweep_override() else ()
    return str(parsed.input_line).partition("=")[2], choices


def in_grammar(value: object) -> str:
    """A Python value in Hydra's grammar; other objects by their `str`."""
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{in_grammar(item)}' for key, item in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(in_grammar, value))}]"
    if value is None or isinstance(value, bool | int | float):
        return "null" if value is None else str(value).lower()
    return quoted(str(value))


def _parse(value: str) -> HydraOverride:
    """Parse a value; one such as `/a b/c=d`, which needs quotes, is quoted and parsed again.

    Raises:
        ValueError: With the reason, where quoting doesn't help.
    """
    parser = OverridesParser.create()
    try:
        return parser.parse_override(f"key={value}")
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    except HydraException as error:
        reason = first_line(error)
    if value.startswith(_QUOTED):
        raise ValueError(reason)
    try:
        return parser.parse_override(f"key={quoted(value)}")
    except HydraException:
        raise ValueError(reason) from None


def quoted(value: str) -> str:
    """A text as one value, with any characters in it; `${` still refers to another key."""
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', value)  # a backslash only counts before a quote
    escaped += "\\" * (len(escaped) - len(escaped.rstrip("\\")))
    return f'"{escaped}"'


def _choices(parsed: HydraOverride) -> tuple[str, ...]:
    """The values of a sweep.

    Raises:
        ValueError: Where there are none, or more than `MOST_VALUES`.
    """
    swept = parsed.value()
    if isinstance(swept, RangeSweep) and not swept.step:
        raise ValueError("a range with steps of 0 has no end")
    if isinstance(swept, RangeSweep) and not _steps(swept) < MAX_VALUES:
        raise ValueError(f"a sweep takes at most {MAX_VALUES:,} values")
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


def unquoted(value: str) -> str:
    """A value without the quotes around it, if there are any."""
    is_quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
    return value[1:-1] if is_quoted else value


def literal(value: str) -> str:
    """A value quoted for Hydra's grammar, with interpolations escaped."""
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", unquoted(value))
    return quoted(text)
