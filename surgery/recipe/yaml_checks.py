"""Check a recipe file before it is composed: its YAML and its `defaults`."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, Span
from surgery.diagnostics.wording import first_line
from surgery.recipe.source_map import compose_yaml, map_sources, shown_path, span_of_node
from surgery.storage.escape import escapes
from surgery.storage.yaml_text import load_yaml

_SELF: Final = "_self_"
_EXAMPLE: Final = "defaults: [base, _self_]"
_MAX_VALUES: Final = 20_000  # ten thousand block indices, and as many others
_MAX_BYTES: Final = 500_000  # bytes; PyYAML reads some 100,000 of them in a second


def yaml_faults(file: Path) -> list[Diagnostic]:
    """The errors of a file as YAML: syntax, keys, no mapping, `defaults` without `_self_`."""
    try:
        _refuse_size(file)
        text = file.read_text(encoding="utf-8")
        root = compose_yaml(text)
        if not isinstance(root, yaml.MappingNode):
            return [
                diagnostic(
                    "R111.no_mapping",
                    file=shown_path(file),
                    found="not a recipe" if root else "empty",
                    span=span_of_node(file, root) if root else None,
                )
            ]
        _refuse_bomb(root)
        found = [*_keys_of_other_types(file, root), *_bad_defaults(file, root)]
        if not found:
            load_yaml(text)
            OmegaConf.load(file)
        return found
    except GrammarParseError as error:
        return [_bad_interpolation(file, error)]
    except yaml.MarkedYAMLError as error:
        return [_bad_yaml(file, error)]
    except RecursionError:
        return [
            diagnostic("R111.unreadable", file=shown_path(file), reason="it is nested without end")
        ]
    except (OSError, ValueError, OmegaConfBaseException, yaml.YAMLError) as error:
        return [diagnostic("R111.unreadable", file=shown_path(file), reason=first_line(error))]


def _keys_of_other_types(file: Path, root: yaml.Node) -> Iterator[Diagnostic]:
    for key in _keys(root):
        if isinstance(key, yaml.ScalarNode) and not key.tag.endswith((":str", ":merge")):
            yield diagnostic("R111.key", value=key.value, span=span_of_node(file, key))


def _refuse_size(file: Path) -> None:
    if file.stat().st_size > _MAX_BYTES:
        raise ValueError(f"it is larger than {_MAX_BYTES:,} bytes")


def _refuse_bomb(root: yaml.Node) -> None:
    if _values_in(root, {}) > _MAX_VALUES:
        raise ValueError(f"written out, its values are more than {_MAX_VALUES:,}, or without end")


def _values_in(node: yaml.Node, counted: dict[int, float]) -> float:
    """The number of values of a node with its aliases expanded; inf if it contains itself."""
    if id(node) not in counted:
        counted[id(node)] = math.inf
        inner = node.value if isinstance(node, yaml.CollectionNode) else ()
        flat = itertools.chain(*inner) if isinstance(node, yaml.MappingNode) else inner
        counted[id(node)] = 1 + sum(_values_in(item, counted) for item in flat)
    return counted[id(node)]


def _keys(node: yaml.Node) -> Iterator[yaml.Node]:
    """Every key inside a node."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield from _keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _keys(item)


def _bad_defaults(file: Path, root: yaml.MappingNode) -> Iterator[Diagnostic]:
    defaults = next((value for key, value in root.value if key.value == "defaults"), None)
    if defaults is None:
        return
    items = defaults.value if isinstance(defaults, yaml.SequenceNode) else None
    if items is None:
        yield diagnostic("R113.not_a_list", span=span_of_node(file, defaults))
        return
    for item in items:
        if isinstance(item, yaml.SequenceNode) or item.tag.endswith((":null", ":int", ":float")):
            yield diagnostic("R113.not_a_name", span=span_of_node(file, item))
        elif name := next((name for name in _names(item) if _is_outside(file, name)), None):
            yield leads_out(name, span_of_node(file, item))
    own = [item for item in items if item.value == _SELF]
    if len(own) != 1:
        yield diagnostic(
            "R113.two_selves" if own else "R113.no_self",
            span=span_of_node(file, defaults),
        )


def _names(item: yaml.Node) -> Iterator[str]:
    """The names in an entry of `defaults`, which may be a mapping of a group to its option."""
    if isinstance(item, yaml.ScalarNode):
        yield item.value.partition("@")[0].split(" ")[-1]
    elif isinstance(item, yaml.CollectionNode):
        for inner in item.value:
            for node in inner if isinstance(inner, tuple) else (inner,):
                yield from _names(node)


def _is_outside(file: Path, name: str) -> bool:
    """Whether a parent is outside a recipe's folder, by its name or through a link."""
    inside = name.lstrip("/")
    return escapes(inside) or escapes(f"{inside}.yaml", file.parent)


def leads_out(name: str, span: Span | None) -> Diagnostic:
    """The diagnostic for a parent that isn't in the recipe's own folder."""
    return diagnostic("R136", name=name, span=span)


def _bad_yaml(file: Path, error: yaml.MarkedYAMLError) -> Diagnostic:
    mark = error.problem_mark
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    line = min(mark.line, len(lines) - 1) if mark else 0
    column = mark.column + 1 if mark else 1
    return diagnostic(
        "R111.syntax",
        reason=first_line(error.problem or error),
        span=Span(shown_path(file), line + 1, column, lines[line]),
    )


def _bad_interpolation(file: Path, error: GrammarParseError) -> Diagnostic:
    key = str(error.full_key or "").replace("[", ".").replace("]", "")
    return diagnostic(
        "R114.malformed",
        setting=key,
        reason=first_line(error),
        span=map_sources([file], []).span(key.split(".")),
    )
