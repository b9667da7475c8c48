"""Content that no recipe may have, independent of the schema: code imports and broken text."""

import re
from collections.abc import Mapping
from typing import Any, Final

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic
from surgery.recipe.source_map import SourceMap, keys_within

CODE_KEYS: Final = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")
"""Keys by which Hydra would import code."""

_SURROGATE: Final = re.compile("[\ud800-\udfff]")
_NOT_IN_A_FILE: Final = {
    "name": ("a recipe has the name of its file", "rename the file, or write a `description`"),
    "hydra": (
        "a recipe says what to change, not how jobs are launched",
        "give settings of Hydra to `surgery sweep` on the command line",
    ),
}


def forbidden(data: Mapping[str, Any], sources: SourceMap) -> list[Diagnostic]:
    """One diagnostic for each forbidden key or value.

    Args:
        data: The composed recipe; an override may have written a complete mapping.
        sources: Where each key was written, overridden keys included.
    """
    keys = (key for key in _NOT_IN_A_FILE if (key,) in sources.keys)
    misplaced = [_not_in_a_file(key, sources) for key in keys]
    return [*_code_imports(data, sources), *_broken_texts(data, sources), *misplaced]


def _code_imports(data: Mapping[str, Any], sources: SourceMap) -> list[Diagnostic]:
    """Refuse every key by which Hydra would import code, at any depth."""
    found = dict.fromkeys([*sources.keys, *(path for path, _ in keys_within(data))])
    return [
        diagnostic("R108.file", path=path[-1], span=sources.span(path, value=False))
        for path in found
        if path and path[-1] in CODE_KEYS
    ]


def _broken_texts(data: Mapping[str, Any], sources: SourceMap) -> list[Diagnostic]:
    """Refuse text with a lone surrogate, as from bytes that are not UTF-8: it can't be written."""
    within = list(keys_within(data))
    texts = [(path[:-1], path[-1]) for path, _ in within]
    texts += [(path, value) for path, value in within if isinstance(value, str)]
    return [
        diagnostic("R137", setting=".".join(path) or "the recipe", span=sources.span(path))
        for path, text in texts
        if _SURROGATE.search(text)
    ]


def _not_in_a_file(key: str, sources: SourceMap) -> Diagnostic:
    why, fix = _NOT_IN_A_FILE[key]
    span = sources.span((key,), value=False)
    return diagnostic("R101.not_here", setting=key, why=why, fix=fix, span=span)
