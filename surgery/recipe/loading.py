"""From a recipe file and `key=value` overrides to a `Recipe`, composed by Hydra.

Hydra merges files and overrides and OmegaConf resolves `${…}`; the result is plain data, which the
schema validates. Each of their many errors becomes a diagnostic with a location. Apart from the
sweep, no other module starts Hydra.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ValidationError

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError, raise_errors
from surgery.recipe.environment import Reader, read_by, reading
from surgery.recipe.error_mapping import from_hydra, from_pydantic
from surgery.recipe.forbidden import forbidden
from surgery.recipe.overrides import Override, as_arguments, read_override, span_of
from surgery.recipe.recipe_file import find_recipe, packaged_recipes, recipes_folder
from surgery.recipe.schema import Recipe
from surgery.recipe.secret_values import not_allowed, secrets, values_as_written
from surgery.recipe.source_map import Key, KeyLocation, SourceMap, map_sources
from surgery.recipe.yaml_checks import leads_out, yaml_faults

_COMPOSING: Final = (
    HydraException,
    OmegaConfBaseException,
    OSError,
    TypeError,  # a dotted override into a list
    ValueError,
    RecursionError,
)
_READING: Final = (
    HydraException,
    OmegaConfBaseException,
    OSError,
    ValueError,
    RecursionError,
    yaml.YAMLError,
)
HYDRA_VERSION_BASE: Final = "1.3"
ONLY_STAGE: Final = "train"
"""The name of the one stage of a recipe without `stages`."""
_JOB_GROUPS: Final = (
    *("env", "help", "hydra_help", "hydra_logging", "job_logging", "launcher", "output", "sweeper"),
)


def hydra_settings() -> list[str]:
    """Overrides that add packaged recipes to Hydra's search path and remove its job settings.

    Only a sweep has jobs, and merging unused settings took a sixth of the time of a recipe.
    """
    return [f"hydra.searchpath=[file://{recipes_folder()}]", *(f"~hydra/{g}" for g in _JOB_GROUPS)]


def load_recipe(
    recipe: str | os.PathLike[str],
    overrides: Sequence[str] | Mapping[str, object] | None = None,
    *,
    allow_env: bool = False,
) -> Recipe:
    """Read a recipe with overrides.

    Args:
        recipe: Name of a packaged recipe, or path of a `.yaml` file.
        overrides: `key=value` as on the command line, or a mapping such as `{"rank": 4}`. A bare
            key is a field of the recipe, a knob, or a key of every stage, such as `steps`; a recipe
            without stages gets one with the name `train`. Empty by default.
        allow_env: Whether `${oc.env:NAME}` may read the environment; False by default. In
            `description`, `knobs` and `stages` its value is used, and the interpolation is written.

    Raises:
        SurgeryError: R101 to R116, R134 to R136, all errors together.
    """
    file = find_recipe(recipe)
    raise_errors(yaml_faults(file))
    with _searching(file.parent), reading(allowed=allow_env) as reader:
        files = merged_files(file)
        read = read_overrides(files, as_arguments(overrides or ()))
        wrong = _unusable(read)
        usable = [item for item in read if isinstance(item, Override) and not item.choices]
        usable = _in_stages(file, files, usable, wrong, reader)
        sources = map_sources(files, map(_location, usable))
        content, written = _composed(file, usable, sources, wrong, reader)
        validated = _validated(file, content, sources, wrong)
        return validated.with_written(values_as_written(content, written, sources))


def _in_stages(
    file: Path,
    files: Sequence[Path],
    read: list[Override],
    wrong: list[Diagnostic],
    reader: Reader,
) -> list[Override]:
    """Expand overrides of every stage to the stages' names, which other overrides may change."""
    others = [item for item in read if not item.is_of_every_stage]
    if len(others) == len(read):
        return read
    sources = map_sources(files, map(_location, others))
    content, _ = _composed(file, others, sources, wrong, reader)
    stages = content.get("stages")
    names = [*map(str, stages)] if stages and isinstance(stages, dict) else [ONLY_STAGE]
    return [one for item in read for one in item.in_stages(names)]


def merged_files(file: Path) -> list[Path]:
    """The files that Hydra merges for a recipe, in order; parents first.

    Args:
        file: Path of the recipe, which is valid YAML.

    Raises:
        SurgeryError: R111 or R113, where a parent is missing or is not YAML.
    """
    sources = map_sources([file], [])
    try:
        loader = GlobalHydra.instance().config_loader()
        listed = loader.compute_defaults_list(file.stem, hydra_settings(), RunMode.RUN).defaults
    except _READING as error:
        raise SurgeryError(from_hydra(error, sources, packaged_recipes())) from error
    names = [entry.config_path for entry in listed if entry.config_path]
    found = (_parent_file(file, name) for name in names if not name.startswith("hydra/"))
    files = [parent for parent in found if parent]
    own_folders = [folder.resolve() for folder in (file.parent, recipes_folder())]
    foreign = [
        f for f in files if not any(f.resolve().is_relative_to(folder) for folder in own_folders)
    ]
    raise_errors(leads_out(f.name, sources.span(("defaults",))) for f in foreign)
    raise_errors(fault for parent in files if parent != file for fault in yaml_faults(parent))
    return files


def read_overrides(files: Sequence[Path], typed: Sequence[str]) -> list[Override | Diagnostic]:
    """Parse overrides of the recipe that `files` are merged to, with the knobs in those files."""
    knobs = _knobs(files)
    return [read_override(n, text, knobs) for n, text in enumerate(typed, start=1)]


def resolve_again(content: dict[str, Any], *, allow_env: bool) -> Recipe:
    """Read the output of `Recipe.resolved`, which may have interpolations.

    Args:
        content: Plain data.
        allow_env: Whether interpolations may read the environment.
    """
    if not allow_env:
        return Recipe.model_validate_json(json.dumps(content))
    with reading(allowed=True) as reader:
        config = OmegaConf.create(content)
        resolved: Any = OmegaConf.to_container(config, resolve=True)
        written = read_by(config, reader)
    return Recipe.model_validate_json(json.dumps(resolved)).with_written(written)


def knob_names(recipe: str | os.PathLike[str], *, allow_env: bool = False) -> list[str]:
    """The knobs of a recipe, including those of its parents.

    Args:
        recipe: As for `load_recipe`.
        allow_env: Whether its `defaults` may read the environment; False by default.

    Raises:
        SurgeryError: R111 to R113, where it or a parent is missing or can't be read.
    """
    file = find_recipe(recipe)
    raise_errors(yaml_faults(file))
    with _searching(file.parent), reading(allowed=allow_env):
        return _knobs(merged_files(file))


def _knobs(files: Sequence[Path]) -> list[str]:
    written = map_sources(files, []).keys
    return [path[1] for path in written if len(path) == 2 and path[0] == "knobs"]


@contextlib.contextmanager
def _searching(folder: Path) -> Iterator[None]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(folder), version_base=HYDRA_VERSION_BASE):
        yield


def _parent_file(file: Path, name: str) -> Path | None:
    folders = (file.parent, recipes_folder())
    candidates = (folder / f"{name}.yaml" for folder in folders)
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _location(item: Override) -> KeyLocation:
    key, value = (span_of(item.number, item.typed, value=value) for value in (False, True))
    return KeyLocation(item.path, key, value)


def _unusable(read: Sequence[Override | Diagnostic]) -> list[Diagnostic]:
    wrong = [item for item in read if isinstance(item, Diagnostic)]
    valid = [item for item in read if isinstance(item, Override)]
    return [
        *wrong,
        *(
            diagnostic(
                "R115.values",
                typed=item.typed,
                span=span_of(item.number, item.typed, value=True),
            )
            for item in valid
            if item.choices
        ),
    ]


def _composed(
    file: Path,
    overrides: list[Override],
    sources: SourceMap,
    wrong: list[Diagnostic],
    reader: Reader,
) -> tuple[dict[str, Any], dict[Key, str]]:
    """The resolved content, and the source text of each value that depends on the environment."""
    config = None
    try:
        config = compose(file.stem, [*(item.hydra for item in overrides), *hydra_settings()])
        content: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except _COMPOSING as error:
        if reader.is_refused:
            raise SurgeryError([*wrong, *not_allowed(config, reader, sources)]) from error
        found = from_hydra(error, sources, packaged_recipes())
        raise SurgeryError([*wrong, found]) from error
    written = read_by(config, reader) if reader.names else {}
    return {str(key): value for key, value in content.items()}, written


def _validated(
    file: Path, content: dict[str, Any], sources: SourceMap, wrong: list[Diagnostic]
) -> Recipe:
    data = {**content, "name": file.stem}
    wrong = [*wrong, *forbidden(content, sources), *secrets(content, sources)]
    try:
        recipe = Recipe.model_validate(data)
    except ValidationError as error:
        raise SurgeryError([*wrong, *from_pydantic(error, data, sources)]) from error
    raise_errors(wrong)
    return recipe.with_sources(sources)
