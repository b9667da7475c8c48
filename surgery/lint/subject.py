"""What is linted: a recipe, an adapter folder, a checkpoint or its config, or an ONNX file."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.model.reader import read_anatomy
from surgery.model.source import BUILTIN, find_model
from surgery.plan.planner import Plan, PlannedStage, plan_recipe
from surgery.plan.selection import Selection
from surgery.plan.serialization import recipe_of
from surgery.recipe.loading import knob_names, load_recipe
from surgery.recipe.overrides import FIELDS
from surgery.recipe.recipe_file import find_recipe, packaged_recipes
from surgery.recipe.schema import Recipe
from surgery.storage.file_names import ASSEMBLED_FOLDER, MANIFEST_FILE, PLAN_FILE
from surgery.storage.inputs import Input
from surgery.storage.json_file import read_regular
from surgery.storage.safetensors.header import read_errors

Kind = Literal["recipe", "adapter", "checkpoint", "graph"]
_GRAPH: Final = ".onnx"
_CONFIG: Final = "config.json"
_A: Final = {"adapter": "an adapter", "checkpoint": "a checkpoint", "graph": "an ONNX file"}


@dataclass(frozen=True)
class Subject:
    """One thing to lint.

    Args:
        name: as the user typed it.
        kind: what it is.
        file: the file that stands for it where a finding has no place of its own, if there is one.
        overrides: those of the command line; only a recipe has any.
        allow_env: whether a recipe may read the environment.
    """

    name: str
    kind: Kind
    file: Path | None
    overrides: tuple[str, ...] = ()
    allow_env: bool = False

    def plan(self, *, trust_remote_code: bool = False) -> Plan:
        """Return the plan; for a checkpoint, one that changes nothing.

        Not for a graph. Weights are not needed.

        Raises:
            SurgeryError: R, M or P, as for `surgery plan`; A402 and A420 to A423 for an adapter
                whose files don't mean one model, its weights aside where they are missing.
        """
        if self.kind == "adapter":
            return _plan_of_adapter(Path(self.name), trust_remote_code)
        if self.kind == "checkpoint":
            return _plan_of_checkpoint(self.name, trust_remote_code)
        recipe = load_recipe(self.name, self.overrides, allow_env=self.allow_env)
        return plan_recipe(recipe, trust_remote_code=trust_remote_code)

    def inputs(self) -> Iterator[Input]:
        """What is read to lint it, as far as it is on this disk."""
        if self.file:
            is_one = self.kind in ("recipe", "graph")
            yield Input(self.file if is_one else self.file.parent, "the subject")
        with suppress(SurgeryError):  # which the report is to say
            if self.kind == "recipe":
                yield from load_recipe(self.name, self.overrides, allow_env=self.allow_env).inputs()
            elif self.kind == "adapter":
                yield from _recipe_of_adapter(Path(self.name)).inputs()


def find_subjects(arguments: Iterable[str], *, allow_env: bool = False) -> list[Subject]:
    """Separate the arguments of a command line: overrides have a `=`, all others are subjects.

    Of several recipes, one that lacks a knob that another has is linted without it, as in a sweep.

    Args:
        arguments: in any order; where all are overrides, every packaged recipe is meant.
        allow_env: whether recipes may read the environment.

    Raises:
        SurgeryError: R112 and R127 for arguments that name nothing, R125 for overrides that nothing
            takes.
    """
    arguments = list(arguments)
    overrides = [argument for argument in arguments if is_override(argument)]
    named = [argument for argument in arguments if not is_override(argument)] or list(
        packaged_recipes()
    )
    found = [replace(subject, allow_env=allow_env) for subject in _subjects(named)]
    recipes = [subject for subject in found if subject.kind == "recipe"]
    if overrides and not recipes:
        raise SurgeryError(_unused_override(overrides[0], found[0]))
    accepted = _overrides_of(recipes, overrides)
    return [replace(subject, overrides=accepted.get(subject.name, ())) for subject in found]


def _overrides_of(recipes: list[Subject], overrides: list[str]) -> dict[str, tuple[str, ...]]:
    """The overrides that each recipe takes: all, but for knobs that only others have."""
    if len(recipes) < 2 or not overrides:
        return {subject.name: tuple(overrides) for subject in recipes}
    knobs = {s.name: set(knob_names(s.name, allow_env=s.allow_env)) for s in recipes}
    known = set[str]().union(*knobs.values()) - {*FIELDS}
    return {
        name: tuple(
            argument
            for argument in overrides
            if _key(argument) in own or _key(argument) not in known
        )
        for name, own in knobs.items()
    }


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def is_override(argument: str) -> bool:
    """Whether an argument of the command line is an override; a file may have a `=` in its name."""
    return ("=" in argument or argument.startswith("~")) and not os.path.exists(argument)


def _subjects(named: Iterable[str]) -> Iterator[Subject]:
    wrong: list[Diagnostic] = []
    for argument in named:
        try:
            yield _subject(argument)
        except SurgeryError as error:
            wrong += error.diagnostics
    if wrong:
        raise SurgeryError(wrong)


def _subject(argument: str) -> Subject:
    path = Path(os.path.expanduser(argument))
    if path.suffix == _GRAPH:
        return Subject(argument, "graph", path)
    if path.name in (PLAN_FILE, _CONFIG) and not os.path.isfile(path):
        raise SurgeryError(_no_subject(argument, "there is no such file"))
    if path.name == PLAN_FILE or os.path.isfile(path / PLAN_FILE):
        folder = path.parent if path.name == PLAN_FILE else path
        return Subject(str(folder), "adapter", folder / PLAN_FILE)
    if path.name == _CONFIG or argument.startswith(BUILTIN) or os.path.isfile(path / _CONFIG):
        return Subject(
            argument, "checkpoint", find_model(_without_config(argument)).folder / _CONFIG
        )
    return _recipe_or_hub_id(argument, path)


def _recipe_or_hub_id(argument: str, path: Path) -> Subject:
    try:
        return Subject(argument, "recipe", find_recipe(argument))
    except SurgeryError:
        if os.path.isdir(path):
            why = f"the folder has no {PLAN_FILE}, as an adapter has, and no {_CONFIG}"
            raise SurgeryError(_no_subject(argument, why)) from None
        if os.path.isfile(path) and path.suffix != ".yml":
            why = "a file is a recipe (.yaml), a graph (.onnx) or a config.json"
            raise SurgeryError(_no_subject(argument, why)) from None
        if not _is_hub_id(argument):
            raise
    return Subject(argument, "checkpoint", None)


def _is_hub_id(argument: str) -> bool:
    owner, slash, name = argument.partition("/")
    known = owner not in ("recipes", ".", "..", "~", "") and not name.endswith((".yaml", ".yml"))
    return bool(slash) and "/" not in name and known


def _without_config(argument: str) -> str:
    """The model that is meant by its config.json."""
    path = Path(argument)
    return str(path.parent) if path.name == _CONFIG else argument


def _plan_of_adapter(folder: Path, trust_remote_code: bool) -> Plan:
    """Plan an adapter's recipe on its base again, and compare its files; weights may be missing."""
    recipe = _recipe_of_adapter(folder).model_copy(update={"name": str(folder)})
    assembled = folder / ASSEMBLED_FOLDER if recipe.vision else None
    there = assembled if assembled and assembled.is_dir() else None
    plan = plan_recipe(recipe, trust_remote_code=trust_remote_code, assembled=there)
    if not os.path.isfile(folder / MANIFEST_FILE):  # of an export, its recipe alone is linted
        from surgery.adapter.consistency import read_document, refuse_inconsistent

        document, trusted = read_document(folder), trust_remote_code
        refuse_inconsistent(plan, document, folder, needs_weights=False, trust_remote_code=trusted)
    return plan


def _recipe_of_adapter(folder: Path) -> Recipe:
    file = folder / PLAN_FILE
    with read_errors(file):
        return recipe_of(read_regular(file).decode(errors="replace"), str(file))


def _plan_of_checkpoint(name: str, trust_remote_code: bool) -> Plan:
    """The plan that changes nothing, which `plan_recipe` refuses to make."""
    recipe = Recipe(name=name, model=_without_config(name))
    files = find_model(recipe.model)
    anatomy = read_anatomy(files, trust_remote_code=trust_remote_code)
    return Plan(recipe, anatomy, (), (PlannedStage("", Selection()),), files=files)


def _no_subject(argument: str, why: str) -> Diagnostic:
    return diagnostic("R127", argument=argument, why=why)


def _unused_override(override: str, subject: Subject) -> Diagnostic:
    return diagnostic("R125", override=override, name=subject.name, a=_A[subject.kind])
