"""Turn the errors of pydantic, OmegaConf, Hydra and PyYAML into diagnostics with a place."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from surgery.diagnostic import Diagnostic, Span
from surgery.operation import Strict, known_operations
from surgery.recipe import Recipe, Stage
from surgery.source import SourceMap

Loc = tuple[str | int, ...]
_CODE_KEYS: Final = ("_target_", "_partial_", "_args_", "_recursive_", "_convert_")
_OWN_CODES: Final = {"selector": "R106", "knob": "R107", "rest": "R116"}
_TYPES: Final = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


def yaml_faults(file: Path) -> list[Diagnostic]:
    """What is wrong with a file as YAML: syntax, a key written twice, no mapping, no `_self_`."""
    try:
        content = OmegaConf.load(file)
    except yaml.MarkedYAMLError as error:
        return [_bad_yaml(file, error)]
    except (OSError, ValueError) as error:
        return [_unreadable(file, str(error))]
    if not isinstance(content, DictConfig):
        return [_unreadable(file, "a recipe is a mapping of keys, and this file is not")]
    defaults = content.get("defaults")
    return [_no_self(file)] if defaults is not None and "_self_" not in defaults else []


def code_imports(sources: SourceMap) -> list[Diagnostic]:
    """Refuse every key by which Hydra would import code, wherever it was written."""
    found = [path for path in sources.keys if path and path[-1] in _CODE_KEYS]
    return [
        Diagnostic(
            code="R108",
            what=f"`{path[-1]}` is not allowed in a recipe",
            why="a recipe is data: it can't import or call Python code",
            fix="name an operation with `op:`; see CONTRIBUTING.md for how to add one",
            span=sources.place(path, value=False),
        )
        for path in found
    ]


def from_pydantic(
    error: ValidationError, data: Mapping[str, Any], sources: SourceMap
) -> list[Diagnostic]:
    """One diagnostic for each key that the schema refuses; a union's branches count as one."""
    by_place: dict[Loc, list[Any]] = {}
    for item in error.errors(include_url=False):
        by_place.setdefault(_in_data(item["loc"], data), []).append(item)
    return [_refused(loc, items, data, sources) for loc, items in by_place.items()]


def from_hydra(error: Exception, sources: SourceMap, names: Iterable[str]) -> Diagnostic:
    """The diagnostic for an error of Hydra or OmegaConf while composing."""
    reason = str(error).strip().splitlines()[0]
    if isinstance(error, MissingConfigException):
        return _missing_parent(str(error.missing_cfg_file), sources, names)
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        key = error.full_key.replace("[", ".").replace("]", "")
        return Diagnostic(
            code="R114",
            what=f"`{error.full_key}` can't be resolved",
            why=reason,
            fix="name a key that exists, such as ${knobs.rank}",
            span=sources.place(key.split(".")),
        )
    return Diagnostic(
        code="R110", what="the recipe and its overrides can't be composed", why=reason
    )


def nearest(name: str, known: Iterable[str]) -> str:
    """A remedy: the nearest known name, or all of them."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean `{close[0]}`?" if close else f"known are {', '.join(names)}"


def _in_data(loc: Loc, data: Any) -> Loc:
    """Leave out what pydantic adds to a location: tags and branches of unions."""
    path: list[str | int] = []
    at = data
    for position, step in enumerate(loc):
        last = position == len(loc) - 1
        inside = _step(at, step)
        if inside is not None:
            at = inside[0]
            path.append(step)
        elif last and isinstance(at, dict) and str(step).isidentifier():
            path.append(step)
    return tuple(path)


def _step(at: Any, step: str | int) -> tuple[Any] | None:
    if isinstance(at, dict) and step in at:
        return (at[step],)
    if isinstance(at, list) and isinstance(step, int) and step < len(at):
        return (at[step],)
    return None


def _refused(loc: Loc, items: list[Any], data: Mapping[str, Any], sources: SourceMap) -> Diagnostic:
    own = next((item for item in items if item["type"] in _OWN_CODES), None)
    item = own or items[0]
    kind, name = item["type"], ".".join(map(str, loc))
    if own:
        path = own["ctx"]["key"].split(".") if "key" in own["ctx"] else loc
        return Diagnostic(
            _OWN_CODES[kind], own["msg"], fix=_OWN_FIXES[kind], span=sources.place(path)
        )
    if kind == "extra_forbidden":
        place = sources.place(loc, value=False)
        fix = nearest(str(loc[-1]), _fields_at(loc[:-1], data))
        return Diagnostic("R101", f"unknown key `{name}`", fix=fix, span=place)
    if kind == "missing":
        place = sources.place(loc, value=False)
        return Diagnostic("R104", f"`{name}` is missing", fix=f"write `{loc[-1]}: …`", span=place)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _unknown_operation(loc, item, sources)
    return _wrong_value(loc, items, sources)


_OWN_FIXES: Final = {
    "selector": "write all, none, rest, pre n/d, post n/d, skip n/d, every k, every k from j, "
    "i-j, or positions such as [0, 5, -1]",
    "knob": "give the knob a name of its own",
    "rest": "give all but one of them blocks of their own",
}


def _unknown_operation(loc: Loc, item: Any, sources: SourceMap) -> Diagnostic:
    name, known = ".".join(map(str, loc)), list(known_operations())
    tag = item.get("ctx", {}).get("tag")
    what = (
        f"there is no operation `{tag}`" if tag else f"`{name}` doesn't say which operation it is"
    )
    fix = nearest(tag, known) if tag else f"add `op:` with one of {', '.join(known)}"
    return Diagnostic("R105", what, fix=fix, span=sources.place((*loc, "op")))


def _wrong_value(loc: Loc, items: list[Any], sources: SourceMap) -> Diagnostic:
    name, found = ".".join(map(str, loc)), items[0]["input"]
    wanted = [_TYPES[item["type"]] for item in items if item["type"] in _TYPES]
    place = sources.place(loc)
    if not wanted:
        what = f"`{name}` is {_shown(found)}"
        return Diagnostic("R103", what, why=items[0]["msg"], fix="change it", span=place)
    should = " or ".join(dict.fromkeys(wanted))
    fix = f'quote it: "{found}"' if "text" in wanted and not isinstance(found, (dict, list)) else ""
    what = f"`{name}` should be {should}, and is {_shown(found)}"
    return Diagnostic("R102", what, fix=fix or f"write {should}", span=place)


def _shown(value: object) -> str:
    if isinstance(value, str):
        return f'the text "{value}"'
    return "empty" if value is None else f"{value!r}"


def _fields_at(loc: Loc, data: Mapping[str, Any]) -> Sequence[str]:
    """The keys that the schema knows at a place."""
    match loc:
        case ():
            return [name for name in Recipe.model_fields if name != "name"]
        case ("stages", _):
            return list(Stage.model_fields)
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


def _bad_yaml(file: Path, error: yaml.MarkedYAMLError) -> Diagnostic:
    mark = error.problem_mark
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    line = min(mark.line, len(lines) - 1) if mark else 0
    column = mark.column + 1 if mark else 1
    return Diagnostic(
        code="R111",
        what="the file is not valid YAML",
        why=(error.problem or str(error)).splitlines()[0],
        fix="check indentation, brackets and quotes here",
        span=Span(str(file), line + 1, column, lines[line]),
    )


def _unreadable(file: Path, reason: str) -> Diagnostic:
    return Diagnostic(
        code="R111",
        what=f"{file} is not a recipe",
        why=reason,
        fix="see `surgery recipes show lora`",
    )


def _no_self(file: Path) -> Diagnostic:
    return Diagnostic(
        code="R113",
        what=f"the `defaults` of {file} don't say where the file itself comes",
        why="without `_self_` its own keys may lose to those of its parents",
        fix="end the list with it: defaults: [base, _self_]",
    )


def _missing_parent(name: str, sources: SourceMap, names: Iterable[str]) -> Diagnostic:
    return Diagnostic(
        code="R113",
        what=f"`defaults` names `{name}`, and there is no such recipe",
        why="parents are looked for beside the recipe, then among the packaged ones",
        fix=nearest(name, names),
        span=sources.place(("defaults",)),
    )
