"""One `key=value` of a command line, resolved to a key of the recipe, for Hydra.

A bare key is a field of the recipe first, then a knob, then a key of every stage. Every override is
passed on as `++key=value`, because Hydra refuses to set a key that the YAML doesn't mention; the
schema decides whether the key may exist.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, Span
from surgery.diagnostics.wording import suggest
from surgery.recipe.hydra_grammar import in_grammar, literal, read_value, unquoted
from surgery.recipe.schema import Recipe
from surgery.recipe.source_map import Key
from surgery.recipe.training_schema import Stage

FIELDS: Final = tuple(name for name in Recipe.model_fields if name != "name")
STAGE_FIELDS: Final = tuple(name for name in Stage.model_fields if name not in FIELDS)
"""Keys of a stage that can be given bare, and then mean every stage."""

_EVERY: Final = "*"  # placeholder of each stage's name in a path
_PATH_KEYS: Final = ("model", "vision", "file", "images")
_STEP: Final = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True, slots=True)
class Override:
    """An override that Hydra understands.

    Args:
        number: Position on the command line, from 1.
        typed: Text as the user typed it.
        path: Path of the key in the recipe.
        value: Value in Hydra's grammar; None removes the key.
        choices: Values of a sweep, `placement=pre,post`, in Hydra's grammar; else empty.
    """

    number: int
    typed: str
    path: Key
    value: str | None
    choices: tuple[str, ...] = ()

    @property
    def hydra(self) -> str:
        """The override in Hydra's grammar."""
        key = ".".join(self.path)
        return f"~{key}" if self.value is None else f"++{key}={self.value}"

    @property
    def is_of_every_stage(self) -> bool:
        """Whether it is a bare key of a stage, such as `steps=10`."""
        return self.path[:2] == ("stages", _EVERY)

    def in_stages(self, names: Iterable[str]) -> list["Override"]:
        """One override for each stage, if it is of every stage; else itself alone."""
        if not self.is_of_every_stage:
            return [self]
        return [replace(self, path=("stages", name, *self.path[2:])) for name in names]


def as_arguments(overrides: Iterable[str] | Mapping[str, object]) -> list[str]:
    """Return overrides as on the command line, such as `rank=4` for `{"rank": 4}`.

    Args:
        overrides: Strings, or a mapping from keys to Python values.
    """
    if isinstance(overrides, str):
        return [overrides]
    if isinstance(overrides, Mapping):
        return [f"{key}={in_grammar(value)}" for key, value in overrides.items()]
    return list(overrides)


def read_override(
    number: int, typed: str, knobs: Iterable[str], *, recipes: int = 1
) -> Override | Diagnostic:
    """Parse one override; on an error, return the diagnostic.

    Args:
        number: Position on the command line, from 1.
        typed: Text such as `placement=post`, `operations.copies.blocks=pre 1/3` or
            `~operations.copies`.
        knobs: Names of the recipe's knobs, or of all recipes' in a sweep of several.
        recipes: Number of recipes; 1 by default.
    """
    name, equals, value = typed.partition("=")
    key = name.lstrip("+~")
    if not equals and not name.startswith("~"):
        return diagnostic(
            "R110.no_value",
            typed=typed,
            fix=f"write `{typed}=VALUE`, or `~{typed}` to take the key out"
            if typed
            else "leave it out",
            span=span_of(number, typed, value=False),
        )
    path = _path(key, knobs)
    if path is None:
        return _unknown_key(number, typed, key, knobs, recipes)
    if name.startswith("~"):
        return Override(number, typed, path, None)
    if _is_existing_path(path, value):
        return Override(number, typed, path, literal(value))
    try:
        return Override(number, typed, path, *read_value(value))
    except ValueError as error:
        return _bad_value(number, typed, str(error))


def span_of(number: int, typed: str, *, value: bool) -> Span:
    """The location of an override's key or value on the command line."""
    name, _, value_text = typed.partition("=")
    bare = name.lstrip("+~")
    file = f"<override {number}>"
    if value and value_text:
        return Span(file, 1, len(name) + 2, typed, len(value_text))
    return Span(file, 1, len(name) - len(bare) + 1, typed, max(1, len(bare)))


def _path(key: str, knobs: Iterable[str]) -> Key | None:
    path = tuple(key.split("."))
    if path[0] in FIELDS:
        return path if all(map(_STEP.fullmatch, path)) else None
    if key in set(knobs):
        return ("knobs", key)
    is_of_a_stage = path[0] in STAGE_FIELDS and all(map(_STEP.fullmatch, path))
    return ("stages", _EVERY, *path) if is_of_a_stage else None


def _is_existing_path(path: Key, value: str) -> bool:
    """Whether a key takes a path, and a file or folder exists under exactly that name.

    Such a name may have commas, which otherwise mean a sweep, and `${`, which otherwise means
    another key.
    """
    takes_one = path[-1] in _PATH_KEYS or "data" in path
    return takes_one and os.path.lexists(os.path.expanduser(unquoted(value)))


def _unknown_key(
    number: int, typed: str, key: str, knobs: Iterable[str], recipes: int
) -> Diagnostic:
    known, first = [*FIELDS, *knobs, *STAGE_FIELDS], key.partition(".")[0]
    span = span_of(number, typed, value=False)
    if first in (*FIELDS, *STAGE_FIELDS):
        return diagnostic("R109.malformed", setting=key, span=span)
    near = suggest(first.strip().lower(), known) if first not in known else ""
    fix = near or "set a knob, or a field by its dotted name"
    if first.startswith("hydra"):
        return diagnostic("R109.hydra", setting=first, fix=fix, span=span)
    return diagnostic(
        "R109.unknown" if recipes == 1 else "R109.in_no_recipe",
        setting=first,
        knobs=list(knobs) or "none",
        fields=FIELDS,
        keys=STAGE_FIELDS,
        fix=fix,
        span=span,
    )


def _bad_value(number: int, typed: str, reason: str) -> Diagnostic:
    name, _, value = typed.partition("=")
    if value.startswith(("[", "{")):
        fix = 'close its brackets, and quote words in it that have other signs: ["a b", "c=d"]'
    else:
        fix = f"close its quotes and brackets, or quote all of it: '{name}=\"TEXT\"'"
    return diagnostic(
        "R110.value", name=name, reason=reason, fix=fix, span=span_of(number, typed, value=True)
    )
