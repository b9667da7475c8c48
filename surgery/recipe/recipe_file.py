"""Find the file of a recipe by name: one of the user's, or a packaged one."""

import os
from pathlib import Path

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.diagnostics.wording import nearest, suggest
from surgery.model.source import BUILTIN
from surgery.storage.folder_kinds import did_you_mean, kind_of


def recipes_folder() -> Path:
    """The folder of the packaged recipes, in an installed wheel or at the root of a checkout."""
    installed = Path(__file__).parents[1] / "recipes"
    return installed if installed.is_dir() else Path(__file__).parents[2] / "recipes"


def packaged_recipes() -> dict[str, Path]:
    """The packaged recipes by name, without `base`, which is only a parent of others."""
    files = sorted(recipes_folder().glob("*.yaml"))
    return {file.stem: file for file in files if file.stem != "base"}


def find_recipe(recipe: str | os.PathLike[str]) -> Path:
    """Return the file of a recipe given as `NAME`, `NAME.yaml`, `recipes/NAME.yaml` or a path.

    Raises:
        SurgeryError: R112, with the most similar names.
    """
    if not os.fspath(recipe).strip():
        raise SurgeryError(diagnostic("R112.empty"))
    given = Path(os.path.expanduser(recipe))
    for file in (given, Path(f"{given}.yaml")):
        if file.suffix == ".yaml" and os.path.isfile(file):
            return file.resolve()
    packaged = recipes_folder() / f"{given.name.removesuffix('.yaml')}.yaml"
    if os.path.isfile(packaged) and str(given.parent) in (".", "recipes"):
        return packaged
    raise SurgeryError(_no_such_recipe(given))


def _no_such_recipe(given: Path) -> Diagnostic:
    names = packaged_recipes()
    if os.path.isdir(given):
        return _a_folder(given)
    if given.suffix == ".yml":
        why, fix = "a recipe's file ends in .yaml", f"rename it to {given.stem}.yaml"
    elif os.path.exists(given):
        why, fix = "it is a file whose name doesn't end in .yaml", "name a recipe's .yaml file"
    elif str(given).startswith(BUILTIN):
        why, fix = "built-in models are named like that", f"name it after a recipe: model={given}"
    else:
        why = "no such file, and no packaged recipe"
        near = suggest(given.stem, names) or did_you_mean(given, wanted=_could_be_meant)
        fix = near or nearest(given.stem, names)
    return diagnostic("R112.unknown", given=given, why=why, fix=fix)


def _could_be_meant(path: Path) -> bool:
    return os.path.isdir(path) or (path.suffix == ".yaml" and os.path.isfile(path))


def _a_folder(given: Path) -> Diagnostic:
    kind, recipe = kind_of(given), given / "recipe.yaml"
    own = f"; its recipe is `{recipe}`" if recipe.is_file() else ""
    fix = kind.taken_by if kind else "name a file in it, or see `surgery recipes list`"
    return diagnostic(
        "R112.folder", given=given, kind=kind.what if kind else "a folder", fix=fix, own=own
    )
