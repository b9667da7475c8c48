"""Mechanical fixes: where one setting is a finding's remedy, it is written or printed.

A recipe file is changed at that one place, byte by byte. A round trip through ruamel.yaml would
reformat the rest: `{op: expert,   form: gather}`, `~`, CRLF, a folded text, a long list.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from surgery.diagnostics.diagnostic import Diagnostic, Span, SurgeryError
from surgery.diagnostics.finding import Finding
from surgery.lint.subject import Subject
from surgery.recipe.loading import load_recipe
from surgery.recipe.recipe_file import recipes_folder
from surgery.recipe.schema import Recipe
from surgery.recipe.source_map import compose_yaml
from surgery.storage.atomic_text import replace_text
from surgery.storage.disk_errors import io_errors
from surgery.storage.yaml_text import load_yaml

_KNOB: Final = re.compile(r"\$\{knobs\.([\w-]+)\}")


@dataclass(frozen=True)
class Fix:
    """One key of a recipe with the value that corrects it.

    Args:
        key: dotted.
        value: as YAML.
    """

    key: str
    value: str

    def __str__(self) -> str:
        return f"{self.key}={self.value}"


def fixes_of(findings: Iterable[Finding]) -> list[Fix]:
    """The edits of findings, each key once; what is allowed stays."""
    edits = dict(f.edit for f in findings if f.edit and not f.allowed)
    return [Fix(key, value) for key, value in edits.items()]


def write_fixes(subject: Subject, fixes: Iterable[Fix]) -> list[Fix]:
    """Write what can be written of some fixes, and return what was.

    Args:
        subject: any; only a recipe file of the user's is changed.
        fixes: of its findings.

    Raises:
        SurgeryError: as `write_fix`.
    """
    if subject.kind != "recipe" or subject.file is None:
        return []
    file = subject.file
    return [fix for fix in fixes if write_fix(file, subject.overrides, fix)]


def write_fix(file: Path, overrides: Iterable[str], fix: Fix) -> bool:
    """Write a fix into a recipe file, if it is the user's and says what is to be changed.

    Args:
        file: of the recipe.
        overrides: of the command line; what they set isn't the file's to correct.
        fix: what to write.

    Returns:
        Whether the file is changed, so that it now says so.

    Raises:
        SurgeryError: A303 or A304, where the disk doesn't let it; A308 where somebody else writes
            the file in the meantime.
    """
    file = file.resolve()
    if file.is_relative_to(recipes_folder().resolve()):
        return False
    with io_errors(file), file.open(encoding="utf-8", newline="") as opened:
        text = opened.read()
    changed = _changed(text, file, load_recipe(file, list(overrides)), fix)
    if changed is None:
        return False
    replace_text(file, changed, expected=text)
    if _is_written(file, fix):
        return True
    replace_text(file, text, expected=changed)
    return False


def _changed(text: str, file: Path, recipe: Recipe, fix: Fix) -> str | None:
    span = _span_of(recipe, fix.key)
    if span is None or span.file.startswith("<"):
        return None
    if Path(span.file).resolve() == file and _is_value(span, _value(recipe, fix.key)):
        return _at_span(text, span, fix.value)
    return _in_mapping(text, fix)


def _span_of(recipe: Recipe, key: str) -> Span | None:
    """Where the value of a key was written; of `${knobs.NAME}`, the knob's."""
    span = recipe.locate([Diagnostic("", "", key=key)])[0].span
    knob = _KNOB.search(span.marked()) if span else None
    return _span_of(recipe, f"knobs.{knob[1]}") if knob else span


def _value(recipe: Recipe, key: str) -> Any:
    value: Any = recipe.resolved()
    for step in key.split("."):
        value = value.get(step) if isinstance(value, dict) else None
    return value


def _is_value(span: Span, value: Any) -> bool:
    try:
        return bool(load_yaml(span.marked()) == value)
    except yaml.YAMLError:
        return False


def _at_span(text: str, span: Span, value: str) -> str:
    lines = text.splitlines(keepends=True)
    line, start = lines[span.line - 1], span.column - 1
    lines[span.line - 1] = f"{line[:start]}{value}{line[start + span.width :]}"
    return "".join(lines)


def _in_mapping(text: str, fix: Fix) -> str | None:
    """Write a key that is not there behind the first one of its mapping, if that is in the file."""
    *around, name = fix.key.split(".")
    mapping = compose_yaml(text)
    for step in around:
        mapping = _value_node(mapping, step)
    if not isinstance(mapping, yaml.MappingNode) or not mapping.value:
        return None
    first, value = mapping.value[0]
    entry = f"{name}: {fix.value}"
    at = value.end_mark.index
    if mapping.flow_style:
        return f"{text[:at]}, {entry}{text[at:]}"
    at = (text.find("\n", at) + 1) or len(text)
    end = "\r\n" if "\r\n" in text else "\n"
    return f"{text[:at]}{' ' * first.start_mark.column}{entry}{end}{text[at:]}"


def _value_node(node: yaml.Node | None, key: str) -> yaml.Node | None:
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return next((value for name, value in pairs if name.value == key), None)


def _is_written(file: Path, fix: Fix) -> bool:
    try:
        return bool(_value(load_recipe(file), fix.key) == load_yaml(fix.value))
    except SurgeryError:
        return False
