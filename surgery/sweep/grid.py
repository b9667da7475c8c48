"""The grid of a sweep: the trials of `recipe=a,b rank=4,8`, each composed and planned.

A recipe without one of the knobs is not run once for each of that knob's values, but once, with a
note. Every error of every grid point is reported here, before a job starts.
"""

import itertools
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from hydra.core.override_parser.overrides_parser import OverridesParser

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError, raise_errors, some_of
from surgery.diagnostics.distribution import own_version
from surgery.plan.planner import Plan, plan_recipe
from surgery.plan.serialization import FORMAT_VERSION, to_json
from surgery.recipe.hydra_grammar import MAX_VALUES
from surgery.recipe.loading import knob_names, load_recipe, resolve_again
from surgery.recipe.overrides import Override, read_override, span_of
from surgery.recipe.recipe_file import packaged_recipes
from surgery.recipe.schema import Recipe

_CODE_KEY: Final = re.compile(
    r"(?<![\w/])(_(?:target|partial|args|recursive|convert)_)(?=[\"']?\s*(?:[:=@]|$))"
)


@dataclass(frozen=True)
class GridPoint:
    """One point of the grid.

    Args:
        number: Index from 0, which is also the name of its job's folder.
        recipe: Recipe as typed.
        overrides: One value each, as they could be typed for `surgery plan`.
        swept: Overrides that differ between grid points, for display; all, where none differs.
        notes: What was left out, such as "no knob `placement`".
    """

    number: int
    recipe: str
    overrides: tuple[str, ...]
    swept: tuple[str, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join((self.recipe, *self.swept))


def expand(
    recipes: Sequence[str], arguments: Sequence[str], *, allow_env: bool = False
) -> list[GridPoint]:
    """Return the Cartesian product of recipes and the values of their overrides, in typed order.

    Args:
        recipes: Packaged names or paths; `read_recipes` reads those after `recipe=`.
        arguments: Overrides, such as `rank=4,8` and `rank=range(4,17,4)`.
        allow_env: Whether the recipes may read the environment; False by default.

    Raises:
        SurgeryError: R108 to R113, for all wrong overrides at once; R118 for too many grid points.
    """
    refuse_code(arguments)
    knobs = _knobs_by_recipe(recipes, allow_env)
    known = list(dict.fromkeys(knob for names in knobs.values() for knob in names))
    read = [
        read_override(number, typed, known, recipes=len(recipes))
        for number, typed in enumerate(arguments, start=1)
    ]
    raise_errors(item for item in read if isinstance(item, Diagnostic))
    overrides = _last_of_each(item for item in read if isinstance(item, Override))
    if _most(overrides, recipes) > MAX_VALUES:
        raise SurgeryError(
            diagnostic("R118.too_many", count=_most(overrides, recipes), limit=MAX_VALUES)
        )
    cells = [
        cell for recipe in recipes for cell in _product(recipe, overrides, knobs[recipe], known)
    ]
    return [replace(cell, number=number) for number, cell in enumerate(cells)]


def _most(overrides: Sequence[Override], recipes: Sequence[str]) -> int:
    """Maximum number of grid points, without making them."""
    return len(recipes) * math.prod(max(1, len(item.choices)) for item in overrides)


def read_recipes(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split `recipe=a,b` from the other arguments of a command line.

    A first argument that is no override is the recipe too.

    Raises:
        SurgeryError: R110 and R112, where the recipe is missing, named twice, or can't be read.
    """
    positional = [
        argument
        for argument in arguments[:1]
        if "=" not in argument and not argument.startswith("~")
    ]
    axes = [
        (n, argument) for n, argument in enumerate(arguments, 1) if argument.startswith("recipe=")
    ]
    if len(positional) + len(axes) != 1:
        raise SurgeryError(_recipes_named(len(positional) + len(axes)))
    rest = [argument for argument in arguments if not argument.startswith("recipe=")][
        len(positional) :
    ]
    if positional:
        return positional, rest
    axis = read_override(*axes[0], ["recipe"])
    if isinstance(axis, Diagnostic):
        raise SurgeryError(axis)
    values = axis.choices or (str(axis.value),)
    return list(dict.fromkeys(map(_plain, values))), rest


def plan_points(
    points: Sequence[GridPoint],
    *,
    weights: bool = False,
    trust_remote_code: bool = False,
    allow_env: bool = False,
) -> list[Plan]:
    """Compose and plan every grid point.

    Args:
        points: Grid points of `expand`.
        weights: Whether the jobs will need the weights; False by default.
        trust_remote_code: Whether the models may run their own Python code; False by default.
        allow_env: Whether the recipes may read the environment; False by default.

    Raises:
        SurgeryError: Every error of every grid point, each with the grid points that have it.
    """
    plans: list[Plan] = []
    errors: dict[Diagnostic, list[GridPoint]] = {}
    for point in points:
        try:
            recipe = load_recipe(point.recipe, point.overrides, allow_env=allow_env)
            plans.append(plan_recipe(recipe, weights=weights, trust_remote_code=trust_remote_code))
        except SurgeryError as error:
            for item in error.diagnostics:
                errors.setdefault(item, []).append(point)
    raise_errors(_in_grid_points(item, where, points) for item, where in errors.items())
    return plans


def grid_document(
    points: Sequence[GridPoint],
    plans: Sequence[Plan],
    job: str,
    *,
    trust_remote_code: bool = False,
    allow_env: bool = False,
) -> str:
    """Return the text of points.json: all that a job needs, so that no job composes."""
    entries = [
        {**describe(point), "resolved": plan.recipe.resolved()}
        for point, plan in zip(points, plans, strict=True)
    ]
    head = {"format_version": FORMAT_VERSION, "surgery": own_version(), "job": job}
    trusted = {"trust_remote_code": trust_remote_code, "allow_env": allow_env}
    return to_json({**head, **trusted, "points": entries})


def describe(point: GridPoint) -> dict[str, Any]:
    """A grid point as a JSON document."""
    return {
        "point": point.number,
        "recipe": point.recipe,
        "overrides": list(point.overrides),
        "swept": list(point.swept),
        "notes": list(point.notes),
    }


def read_point(file: Path, number: int) -> tuple[dict[str, Any], Recipe, bool]:
    """Return a grid point of points.json, its recipe, and whether it trusts remote code."""
    grid = json.loads(file.read_bytes())
    entry: dict[str, Any] = grid["points"][number]
    recipe = resolve_again(entry.pop("resolved"), allow_env=grid.get("allow_env", False))
    return entry, recipe, grid["trust_remote_code"]


def refuse_code(arguments: Iterable[str]) -> None:
    """Refuse arguments with a key by which Hydra would import code.

    Raises:
        SurgeryError: R108, one for each.
    """
    found = (
        (n, argument, _CODE_KEY.search(argument)) for n, argument in enumerate(arguments, start=1)
    )
    raise_errors(_imports_code(n, argument, match[1]) for n, argument, match in found if match)


def _knobs_by_recipe(recipes: Sequence[str], allow_env: bool) -> dict[str, list[str]]:
    knobs: dict[str, list[str]] = {}
    errors: list[Diagnostic] = []
    for recipe in recipes:
        try:
            knobs[recipe] = knob_names(recipe, allow_env=allow_env)
        except SurgeryError as error:
            errors += error.diagnostics
    raise_errors(errors)
    return knobs


def _last_of_each(overrides: Iterable[Override]) -> list[Override]:
    """Of several overrides of one key the last counts, as for Hydra."""
    return list({(item.path, item.typed[0] == "~"): item for item in overrides}.values())


def _product(
    recipe: str, overrides: Sequence[Override], own: Sequence[str], known: Sequence[str]
) -> list[GridPoint]:
    lacks = [item for item in overrides if _knob(item) in known and _knob(item) not in own]
    applied = [item for item in overrides if item not in lacks]
    notes = tuple(f"no knob `{_knob(item)}`" for item in lacks)
    any_sweeps = any(item.choices for item in overrides)
    sweeps = [bool(item.choices) or not any_sweeps for item in applied]
    return [
        GridPoint(0, recipe, arguments, _swept(arguments, sweeps), notes)
        for arguments in itertools.product(*map(_choices, applied))
    ]


def _plain(value: str) -> str:
    """The text of a value in Hydra's grammar, without its quotes."""
    return str(OverridesParser.create().parse_override(f"recipe={value}").value())


def _knob(item: Override) -> str | None:
    return item.path[1] if item.path[0] == "knobs" and len(item.path) == 2 else None


def _choices(item: Override) -> tuple[str, ...]:
    name = item.typed.partition("=")[0]
    return tuple(f"{name}={choice}" for choice in item.choices) or (item.typed,)


def _swept(arguments: Sequence[str], sweeps: Sequence[bool]) -> tuple[str, ...]:
    chosen = (argument for argument, sweep in zip(arguments, sweeps, strict=True) if sweep)
    return tuple(re.sub(r"\\(.)", r"\1", argument) for argument in chosen)


def _in_grid_points(
    item: Diagnostic, where: Sequence[GridPoint], points: Sequence[GridPoint]
) -> Diagnostic:
    named = some_of([f"{point.number} `{point}`" for point in where])
    plural = "grid points" if len(where) > 1 else "grid point"
    if len(points) == 1:
        return item
    every = len(where) == len(points)
    location = f"every one of the {len(points)} grid points" if every else f"{plural} {named}"
    return replace(item, what=f"{item.what}, in {location}")


def _recipes_named(count: int) -> Diagnostic:
    names = list(packaged_recipes())
    return diagnostic("R112.two_recipes" if count else "R112.none_named", names=names)


def _imports_code(number: int, argument: str, key: str) -> Diagnostic:
    return diagnostic(
        "R108.override",
        setting=key,
        span=span_of(number, argument, value=key not in argument.partition("=")[0]),
    )
