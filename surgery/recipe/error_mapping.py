"""Turn the errors of pydantic, OmegaConf and Hydra into diagnostics with a location."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from hydra.errors import MissingConfigException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import ValidationError

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, Span
from surgery.diagnostics.wording import first_line, nearest
from surgery.operations.base import Strict, known_operations
from surgery.recipe.forbidden import CODE_KEYS
from surgery.recipe.schema import Recipe
from surgery.recipe.source_map import SourceMap
from surgery.recipe.training_schema import Source, Stage

Loc = tuple[str | int, ...]
OWN_ERRORS: Final = {  # by the names of errors that our own validators raise
    "selector": "R106",
    "name": "R107",
    "rest": "R116",
    "ranges": "R119",
    "rule": "R123",
    "reason": "R124",
    "named": "R103.unnamed_data",
}
_TYPES: Final = {  # the expected value, by pydantic's names of errors; braces take its context
    "literal_error": "{expected}",
    "greater_than_equal": "at least {ge}",
    "greater_than": "more than {gt}",
    "less_than_equal": "at most {le}",
    "less_than": "less than {lt}",
    "finite_number": "a finite number",
    "too_short": "a list that is not empty",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


def from_pydantic(
    error: ValidationError, data: Mapping[str, Any], sources: SourceMap
) -> list[Diagnostic]:
    """One diagnostic for each invalid key; the branches of a union count as one.

    Args:
        error: Error of pydantic.
        data: The validated data.
        sources: Where each key was written.
    """
    by_location: dict[Loc, list[Any]] = {}
    for item in error.errors(include_url=False):
        loc = _in_data(item["loc"], data, missing=item["type"] == "missing")
        if item["type"] != "extra_forbidden" or loc[-1] not in CODE_KEYS:
            by_location.setdefault(loc, []).append(item)
    return [
        _refused(loc, items, data, sources)
        for loc, items in by_location.items()
        if not _is_other_branch(loc, items, by_location)
    ]


def _is_other_branch(loc: Loc, items: list[Any], by_location: Iterable[Loc]) -> bool:
    """Whether all errors come from a union's other branches, where one branch has its own."""
    inside = any(other[: len(loc)] == loc and len(other) > len(loc) for other in by_location)
    return inside and all(item["type"] in _TYPES for item in items)


def from_hydra(error: Exception, sources: SourceMap, names: Iterable[str]) -> Diagnostic:
    """The diagnostic for an error of Hydra or OmegaConf while composing.

    Args:
        error: The error.
        sources: Where each key was written.
        names: Names of the packaged recipes.
    """
    reason = first_line(error)
    if isinstance(error, MissingConfigException):
        return _missing_parent(str(error.missing_cfg_file), sources, names)
    if isinstance(error, OSError):
        return diagnostic(
            "R113.unreadable",
            reason=error.strerror or reason,
            span=sources.span(("defaults",)),
        )
    if isinstance(error, RecursionError):
        reason = "the recipes in `defaults` name each other in a circle, or are nested without end"
    absent = re.search(r"delete from config\. '(.+)' does not exist", reason)
    if absent:
        span = sources.span(absent[1].split("."))
        return diagnostic("R109.absent", setting=absent[1], span=span)
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return _unresolved(error, reason, sources)
    return diagnostic("R110.composition", reason=reason, span=sources.span(("defaults",)))


def _unresolved(error: OmegaConfBaseException, reason: str, sources: SourceMap) -> Diagnostic:
    key = str(error.full_key).replace("[", ".").replace("]", "")
    span = sources.span(key.split("."))
    if isinstance(error, MissingMandatoryValue):
        return diagnostic("R104.knob", setting=key, knob=key.removeprefix("knobs."), span=span)
    knobs = dict.fromkeys(path[1] for path in sources.keys if path[0:1] == ("knobs",) and path[1:])
    return diagnostic(
        "R114.unresolved", setting=key, reason=reason, knob=next(iter(knobs), "NAME"), span=span
    )


def _in_data(loc: Loc, data: Any, *, missing: bool) -> Loc:
    """Remove the tags and branches of unions that pydantic adds to a location."""
    path: list[str | int] = []
    at = data
    for position, step in enumerate(loc):
        last = position == len(loc) - 1
        inside = _child(at, step)
        if inside is not None:
            at = inside[0]
            path.append(step)
        elif last and missing:
            path.append(step)
    return tuple(path)


def _child(at: Any, step: str | int) -> tuple[Any] | None:
    if isinstance(at, dict) and step in at:
        return (at[step],)
    if isinstance(at, list) and isinstance(step, int) and step < len(at):
        return (at[step],)
    return None


def _refused(loc: Loc, items: list[Any], data: Mapping[str, Any], sources: SourceMap) -> Diagnostic:
    own = next((item for item in items if item["type"] in OWN_ERRORS), None)
    item = own or items[0]
    kind, name = item["type"], ".".join(map(str, loc))
    if own:
        return _own_error(loc, own, sources)
    if kind == "extra_forbidden":
        span = sources.span(loc, value=False)
        fix = nearest(str(loc[-1]), _fields_at(loc[:-1], data))
        return diagnostic("R101.unknown", name=name, fix=fix, span=span)
    if kind == "missing":
        span = sources.span(loc, value=False)
        return diagnostic("R104.missing", name=name, last=loc[-1], span=span)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _unknown_operation(loc, item, sources)
    return _wrong_value(loc, items, sources)


def _own_error(loc: Loc, item: Any, sources: SourceMap) -> Diagnostic:
    """The diagnostic for an error of one of our own validators."""
    context = item["ctx"]
    path = context["key"].split(".") if "key" in context else loc
    near = nearest(context["name"], context["known"]) if "known" in context else ""
    span = sources.span(path, value=not near)
    return diagnostic(OWN_ERRORS[item["type"]], fault=item["msg"], near=near, span=span)


def _unknown_operation(loc: Loc, item: Any, sources: SourceMap) -> Diagnostic:
    name, known = ".".join(map(str, loc)), list(known_operations())
    tag, span = item["input"].get("op"), sources.span((*loc, "op"))
    if not tag:
        return diagnostic("R105.missing", name=name, known=known, span=span)
    return diagnostic("R105.unknown", operation=tag, known=nearest(str(tag), known), span=span)


def _wrong_value(loc: Loc, items: list[Any], sources: SourceMap) -> Diagnostic:
    name, found, span = ".".join(map(str, loc)), items[0]["input"], sources.span(loc)
    kinds = [item["type"] for item in items]
    wanted = [
        _TYPES[item["type"]].format(**item.get("ctx", {}))
        for item in items
        if item["type"] in _TYPES
    ]
    if not wanted:
        reason = items[0]["msg"]
        return diagnostic(
            "R103.other", name=name, found=_value_text(found), reason=reason, span=span
        )
    expected = _either(list(dict.fromkeys(wanted)))
    return diagnostic(
        "R102" if any(kind.endswith(("_type", "_float")) for kind in kinds) else "R103.value",
        name=name,
        expected=expected,
        found=_value_text(found),
        fix=_suggested_fix(kinds, found, expected, span),
        span=span,
    )


def _suggested_fix(kinds: list[str], found: object, should: str, span: Span | None) -> str:
    """The corrected value, where it follows from the written one; else the expected type."""
    if found is None:
        return f"write {should}, or take the key out"
    if "string_type" in kinds and isinstance(found, (bool, int, float)):
        return f'quote it: "{span.marked() if span else found}"'
    if kinds == ["tuple_type"] and isinstance(found, str):
        return f"write [{found}]"
    return f"write {should}"


def _either(words: list[str]) -> str:
    return " or ".join([*([", ".join(words[:-1])] if words[1:] else []), words[-1]])


def _value_text(value: object) -> str:
    if value is None:
        return "empty"
    text = f'the text "{value}"' if isinstance(value, str) else repr(value)
    return f"{text[:57]}…" if len(text) > 60 else text


def _fields_at(loc: Loc, data: Mapping[str, Any]) -> Sequence[str]:
    """The keys of the schema at a location."""
    match loc:
        case ():
            return [name for name in Recipe.model_fields if name != "name"]
        case ("stages", _):
            return list(Stage.model_fields)
        case ("stages", _, "data", _):
            return list(Source.model_fields)
        case ("operations", name, *inner):
            model: type[Strict] | None = known_operations().get(data["operations"][name].get("op"))
            for step in inner:
                model = _submodel(model, str(step))
            return list(model.model_fields) if model else []
    return []


def _submodel(model: type[Strict] | None, field: str) -> type[Strict] | None:
    annotation = (
        model.model_fields[field].annotation if model and field in model.model_fields else 0
    )
    return annotation if isinstance(annotation, type) and issubclass(annotation, Strict) else None


def _missing_parent(name: str, sources: SourceMap, names: Iterable[str]) -> Diagnostic:
    return diagnostic(
        "R113.missing",
        name=name,
        known=nearest(name, names),
        span=sources.span(("defaults",)),
    )
