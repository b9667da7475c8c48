"""Values of a recipe that must not be written into folders that are shared."""

import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Final

from pydantic import ValidationError

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.recipe.environment import Reader, read_by, with_written
from surgery.recipe.schema import Recipe
from surgery.recipe.source_map import Key, SourceMap, keys_within

_NOT_IN_MODEL: Final = ("description", "knobs", "stages")
"""Keys of a recipe that don't affect the resulting model; the others are part of its plan."""

_PUBLISHED: Final = "trainer"
"""Key of the settings that the Trainer itself writes into checkpoints and logs."""

_SECRET_KEYS: Final = ("hub_token", "push_to_hub_token")
_SECRET: Final = re.compile(
    r"[a-z][a-z0-9+.-]*://[^/\s@]+:[^/\s@]+@|\bhf_[A-Za-z0-9]{30,}|\bgh[pousr]_[A-Za-z0-9]{36}|"
    r"\bsk-[A-Za-z0-9_-]{20,}|\bAKIA[A-Z0-9]{16}\b",
    re.IGNORECASE,
)


def values_as_written(
    content: Mapping[str, Any], written: Mapping[Key, str], sources: SourceMap
) -> dict[Key, str]:
    """Choose the values that are written as interpolations instead of resolved.

    Numbers are written resolved, and so is what affects the model, since its plan shows it.

    Args:
        content: Content of the recipe, resolved and valid.
        written: Source text of each value that depends on the environment.
        sources: Where each key was written.

    Raises:
        SurgeryError: R134, for a value that would have to be written.
    """
    free = {path: text for path, text in written.items() if _says_nothing_of_the_model(path)}
    chosen = {path: text for path, text in free.items() if not _is_number(content, path)}
    for path, text in chosen.items():
        if _PUBLISHED in path or not _is_valid(content, path, text):
            error = diagnostic(
                "R134.in_logs" if _PUBLISHED in path else "R134.in_the_folder",
                setting=".".join(path),
                span=sources.span(path),
            )
            raise SurgeryError(error)
    return chosen


def not_allowed(config: Any, reader: Reader, sources: SourceMap) -> list[Diagnostic]:
    """One diagnostic for each value that reads the environment where that isn't allowed.

    Args:
        config: Composed OmegaConf config; None where composing failed.
        reader: The reader that refused.
        sources: Where each key was written.
    """
    names, found = list(reader.names), read_by(config, reader) if config is not None else {}
    spans = {path: sources.span(path) for path in found}
    return [
        diagnostic("R134.not_allowed", setting=".".join(path) or "defaults", span=span)
        for path, span in (spans or {(): None} if names else {}).items()
    ]


def secrets(content: Mapping[str, Any], sources: SourceMap) -> list[Diagnostic]:
    """One diagnostic for each value that is a password or a token.

    Args:
        content: Content of the recipe.
        sources: Where each key was written.
    """
    return [
        diagnostic("R135", path=".".join(path), span=sources.span(path, value=False))
        for path, value in keys_within(content)
        if isinstance(value, str) and (_SECRET.search(value) or path[-1] in _SECRET_KEYS)
    ]


def _says_nothing_of_the_model(path: Key) -> bool:
    return path[0] in _NOT_IN_MODEL and path[2:3] != ("train",)


def _is_number(content: Any, path: Key) -> bool:
    for step in path:
        content = content[int(step)] if isinstance(content, list) else content[step]
    return isinstance(content, bool | int | float)


def _is_valid(content: Mapping[str, Any], path: Key, text: str) -> bool:
    try:
        Recipe.model_validate(with_written(deepcopy(dict(content)), {path: text}))
    except ValidationError:
        return False
    return True
