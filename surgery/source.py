"""Where each key of a recipe was written: file, line and column, or which override.

Source: PyYAML's node marks (`yaml.compose`); files are read in the order in which Hydra merges
them, so that the later writer of a key is the one that is shown.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import yaml

from surgery.diagnostic import Diagnostic, Span

Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where one key was written.

    Args:
        path: the key's path from the top.
        key: the place of the key itself.
        value: the place of its value.
        merges: whether the value is a mapping, which adds to an earlier one.
    """

    path: Key
    key: Span
    value: Span
    merges: bool = False


_KNOB: Final = re.compile(r"\$\{knobs\.(\w+)\}")


@dataclass(frozen=True)
class SourceMap:
    """Places of keys and of values, by the key's path from the top.

    Args:
        keys: where the key itself stands.
        values: where its value starts.
    """

    keys: dict[Key, Span] = field(default_factory=dict)
    values: dict[Key, Span] = field(default_factory=dict)

    def place(self, key: Iterable[object], *, value: bool = True) -> Span | None:
        """The place of a key, or of the nearest key around it.

        Args:
            key: path from the top; positions in a list count as keys.
            value: whether the value is meant, or the key itself.
        """
        path = tuple(map(str, key))
        spans = self.values if value else self.keys
        lengths = range(len(path), 0, -1)
        found = next((spans[path[:n]] for n in lengths if path[:n] in spans), None)
        return self._behind(found) if found and value else found

    def _behind(self, span: Span) -> Span:
        """The override of a knob, where the value at a place only refers to the knob."""
        written = span.text[span.column - 1 : span.column - 1 + span.width]
        for knob in _KNOB.findall(written):
            origin = self.values.get(("knobs", knob))
            if origin and origin.file.startswith("<"):
                return origin
        return span

    def locate(self, diagnostic: Diagnostic) -> Diagnostic:
        """Give a diagnostic that names a key the key's place."""
        if diagnostic.span or not diagnostic.key:
            return diagnostic
        return replace(diagnostic, span=self.place(diagnostic.key.split(".")))


def map_sources(files: Iterable[Path], overrides: Iterable[Place]) -> SourceMap:
    """Map the keys of files and overrides; later ones win.

    Args:
        files: YAML files in the order in which they are merged.
        overrides: the places of overrides.
    """
    keys: dict[Key, Span] = {}
    values: dict[Key, Span] = {}
    for place in [*(node for file in files for node in _nodes(file)), *overrides]:
        if not place.merges:
            _forget(place.path, keys, values)
        keys[place.path], values[place.path] = place.key, place.value
    return SourceMap(keys, values)


def _forget(path: Key, *spans: dict[Key, Span]) -> None:
    """Drop what was written inside a value that is now replaced."""
    for known in spans:
        for inside in [key for key in known if key[: len(path)] == path]:
            del known[inside]


def _shown(file: Path) -> str:
    here = Path.cwd()
    return str(file.relative_to(here) if file.is_relative_to(here) else file)


def _nodes(file: Path) -> Iterator[Place]:
    text = file.read_text(encoding="utf-8")
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    lines = text.splitlines() or [""]
    shown = _shown(file)

    def span(node: yaml.Node) -> Span:
        start, end = node.start_mark, node.end_mark
        width = end.column - start.column if end.line == start.line else 1
        return Span(shown, start.line + 1, start.column + 1, lines[start.line], max(1, width))

    def walk(node: yaml.Node, path: Key) -> Iterator[Place]:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                inner = (*path, str(key.value))
                merges = isinstance(value, yaml.MappingNode)
                yield Place(inner, span(key), span(value), merges)
                yield from walk(value, inner)
        elif isinstance(node, yaml.SequenceNode):
            for position, item in enumerate(node.value):
                inner = (*path, str(position))
                yield Place(inner, span(item), span(item))
                yield from walk(item, inner)

    if root is not None:
        yield from walk(root, ())
