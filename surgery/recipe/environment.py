"""Environment variables in a recipe: read only on request, and never written.

A recipe may contain OmegaConf's `${oc.env:NAME}`. Its value may be a secret, and a recipe is
written into plan.json, recipe.yaml and the model card, which are shared.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.recipe.source_map import Key

_RESOLVER: Final = "oc.env"
_NUMBER: Final = re.compile(r"[-+.\deE]{1,8}")
"""Values that are not hidden, since numbers are written as they are."""


@dataclass
class Reader:
    """Temporary replacement of OmegaConf's resolver `oc.env`.

    Args:
        allowed: Whether variables may be read; otherwise reading one is an error.
        names: Names of the variables that were read.
        texts: From each value that isn't a number to the interpolation to show instead.
    """

    allowed: bool
    names: list[str] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def is_refused(self) -> bool:
        """Whether a variable was read though that isn't allowed."""
        return bool(self.names) and not self.allowed

    def __call__(self, *arguments: Any) -> Any:
        """Return the result of OmegaConf's own resolver, and record the name."""
        self.names.append(str(arguments[0]))
        if not self.allowed:
            raise ValueError("variables of the environment are read only with `--allow-env`")
        value = oc.env(*arguments)
        if isinstance(value, str) and value and not _NUMBER.fullmatch(value):
            self.texts[value] = f"${{{_RESOLVER}:{arguments[0]}}}"
        return value

    def hide(self, diagnostic: Diagnostic) -> Diagnostic:
        """Replace values by interpolations in a diagnostic, so that it may be printed anywhere."""
        texts = {key: getattr(diagnostic, key) for key in ("what", "why", "fix")}
        for value in sorted(self.texts, key=len, reverse=True):
            for written in dict.fromkeys((value, repr(value)[1:-1], json.dumps(value)[1:-1])):
                texts = {key: s.replace(written, self.texts[value]) for key, s in texts.items()}
        return replace(diagnostic, **texts)


@contextmanager
def reading(*, allowed: bool) -> Iterator[Reader]:
    """Record which variables are read while recipes are composed, and hide them in errors."""
    reader = Reader(allowed)
    OmegaConf.register_new_resolver(_RESOLVER, reader, replace=True)
    try:
        yield reader
    except SurgeryError as error:
        raise SurgeryError(map(reader.hide, error.diagnostics)) from error
    finally:
        OmegaConf.register_new_resolver(_RESOLVER, oc.env, replace=True)


def read_by(config: Any, reader: Reader) -> dict[Key, str]:
    """From each value of a composed recipe that depends on the environment to its source text.

    Args:
        config: Composed OmegaConf config.
        reader: Active reader, with which each value is resolved again.
    """
    found: dict[Key, str] = {}
    for path, node, key in _written(config, ()):
        reader.names.clear()
        try:
            value = node[key]
            OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else None
        except (OmegaConfBaseException, ValueError):
            pass
        if reader.names:
            found[path] = str(OmegaConf.to_container(node, resolve=False)[key])  # type: ignore[index]
    return found


def _written(node: Any, path: Key) -> Iterator[tuple[Key, Any, Any]]:
    """The path of every interpolation, with its parent node and key."""
    keys = range(len(node)) if OmegaConf.is_list(node) else list(node)
    for key in keys:
        if OmegaConf.is_interpolation(node, key):
            yield (*path, str(key)), node, key
        elif not OmegaConf.is_missing(node, key) and OmegaConf.is_config(node[key]):
            yield from _written(node[key], (*path, str(key)))


def with_written(content: dict[str, Any], written: dict[Key, str]) -> dict[str, Any]:
    """Replace resolved values in plain data by the text of their interpolations."""
    for path, text in written.items():
        inside: Any = content
        for step in path[:-1]:
            inside = inside[int(step)] if isinstance(inside, list) else inside.get(step, {})
        last: Any = int(path[-1]) if isinstance(inside, list) else path[-1]
        inside[last] = text
    return content
