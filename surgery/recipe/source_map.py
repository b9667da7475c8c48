"""Where each key of a recipe was written: file, line and column, or which override.

Source: PyYAML's node marks (`yaml.compose`); files are read in the order in which Hydra merges
them, so that the last location of a key is the one that is shown.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import yaml

from surgery.diagnostics.diagnostic import Diagnostic, Span

Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KeyLocation:
    """Where one key was written.

    Args:
        path: Path of the key from the top.
        key: Location of the key itself.
        value: Location of its value.
        merges: Whether the value is a mapping, which is merged with an earlier one.
    """

    path: Key
    key: Span
    value: Span
    merges: bool = False


_KNOB: Final = re.compile(r"\$\{knobs\.(\w+)\}")


@dataclass(frozen=True)
class SourceMap:
    """Locations of keys and of values, by the key's path from the top.

    Args:
        keys: From path to the location of the key.
        values: From path to the location of its value.
        files: Files that were read, including those with all keys overridden.
    """

    keys: dict[Key, Span] = field(default_factory=dict)
    values: dict[Key, Span] = field(default_factory=dict)
    files: tuple[Path, ...] = ()

    def span(self, key: Iterable[object], *, value: bool = True) -> Span | None:
        """The location of a key, of its nearest parent key, or of the top of the recipe.

        Args:
            key: Path from the top; indices in a list count as keys.
            value: Whether to return the location of the value, or of the key itself.
        """
        path = tuple(map(str, key))
        spans = self.values if value else self.keys
        lengths = range(len(path), -1, -1)
        nearest = next((path[:n] for n in lengths if path[:n] in spans), None)
        if nearest is None:
            return None
        return self._value_span(nearest) if value else spans[nearest]

    def _value_span(self, path: Key) -> Span:
        """The location of a value, or of a knob in it that another file set later."""
        span, written = self.values[path], list(self.values)
        for knob in _KNOB.findall(span.marked()):
            origin = self.values.get(("knobs", knob))
            later = origin and written.index(("knobs", knob)) > written.index(path)
            if origin and later and origin.file != span.file:
                return origin
        return span

    def locate(self, diagnostic: Diagnostic) -> Diagnostic:
        """Give a diagnostic with a `key` the location of that key."""
        if diagnostic.span or not diagnostic.key:
            return diagnostic
        return replace(diagnostic, span=self.span(diagnostic.key.split(".")))


def map_sources(files: Iterable[Path], overrides: Iterable[KeyLocation]) -> SourceMap:
    """Map the keys of files and overrides; later ones win.

    Args:
        files: YAML files in the order in which they are merged.
        overrides: Locations of the overrides.
    """
    files = tuple(files)
    keys: dict[Key, Span] = {}
    values: dict[Key, Span] = {}
    for entry in [*(node for file in files for node in _nodes(file)), *overrides]:
        if not entry.merges and entry.path in keys:
            _forget(entry.path, keys, values)
        keys[entry.path], values[entry.path] = entry.key, entry.value
        for prefix in (entry.path[:n] for n in range(len(entry.path))):
            keys.setdefault(prefix, entry.key)
            values.setdefault(prefix, entry.key)
    return SourceMap(keys, values, files)


def _forget(path: Key, *spans: dict[Key, Span]) -> None:
    """Drop the keys inside a replaced value."""
    for known in spans:
        for inside in [key for key in known if key[: len(path)] == path]:
            del known[inside]


def keys_within(content: object, path: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Every key inside plain data, with its value; indices in a list count as keys."""
    inside: Mapping[Any, Any] = content if isinstance(content, Mapping) else {}
    if isinstance(content, list):
        inside = dict(enumerate(content))
    for key, value in inside.items():
        yield (*path, str(key)), value
        yield from keys_within(value, (*path, str(key)))


def shown_path(file: Path) -> str:
    """A path as the user would type it: relative where it is below the working directory."""
    here = Path.cwd()
    return str(file.relative_to(here) if file.is_relative_to(here) else file)


def span_of_node(file: Path, node: yaml.Node, lines: Sequence[str] | None = None) -> Span:
    """The location of a YAML node; for one of several lines, its first character.

    Args:
        file: File of the node.
        node: Any node of it.
        lines: Lines of the file; read from it by default.
    """
    lines = lines or _lines(file.read_text(encoding="utf-8"))
    start, end = node.start_mark, node.end_mark
    width = end.column - start.column if end.line == start.line else 1
    text = lines[min(start.line, len(lines) - 1)]
    return Span(shown_path(file), start.line + 1, start.column + 1, text, max(1, width))


def _lines(text: str) -> list[str]:
    return re.split("[\n\x85\u2028\u2029]", text.removeprefix("\ufeff"))  # as PyYAML counts them


@lru_cache
def compose_yaml(text: str) -> yaml.Node | None:
    """Return the nodes of a YAML text, which must not be changed; None for an empty text.

    Cached, because one recipe is parsed four times, and `base` by each.

    Raises:
        yaml.YAMLError: Where it isn't YAML.
    """
    root: yaml.Node | None = yaml.compose(text, Loader=yaml.SafeLoader)
    return root


def _nodes(file: Path) -> Iterator[KeyLocation]:
    text = file.read_text(encoding="utf-8")
    root = compose_yaml(text)
    lines = _lines(text)
    if root is not None:
        top = span_of_node(file, root, lines)
        yield KeyLocation((), replace(top, width=1), replace(top, width=1), merges=True)
        yield from _inside(file, lines, root, ())


def _inside(file: Path, lines: Sequence[str], node: yaml.Node, path: Key) -> Iterator[KeyLocation]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*path, str(key.value))
            spans = span_of_node(file, key, lines), span_of_node(file, value, lines)
            yield KeyLocation(inner, *spans, merges=isinstance(value, yaml.MappingNode))
            yield from _inside(file, lines, value, inner)
    elif isinstance(node, yaml.SequenceNode):
        for position, item in enumerate(node.value):
            inner = (*path, str(position))
            span = span_of_node(file, item, lines)
            yield KeyLocation(inner, span, span)
            yield from _inside(file, lines, item, inner)
