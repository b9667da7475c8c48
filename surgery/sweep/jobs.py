"""A sweep by Hydra: one job for each planned grid point, with any of Hydra's launchers.

Hydra sweeps over the indices of points.json, which `sweep/grid.py` made: so a grid need not be a
full product, and no job composes. `python -m surgery.sweep -m recipe=genieblue_skip,lora rank=4,8`
is the same sweep as a Hydra app.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from surgery.adapter.folder import write_adapter
from surgery.adapter.side_files import side_files
from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.diagnostics.wording import named_line
from surgery.model.fingerprint import identify
from surgery.plan.planner import Plan, plan_recipe
from surgery.recipe.loading import HYDRA_VERSION_BASE
from surgery.recipe.recipe_file import packaged_recipes, recipes_folder
from surgery.recipe.schema import Recipe
from surgery.storage.atomic_text import replace_text
from surgery.storage.file_names import PLAN_FILE
from surgery.sweep.grid import read_point
from surgery.sweep.hydra_launcher import HydraSettings
from surgery.sweep.results import crashed, plan_outcome, write_result

POINTS_FILE: Final = "points.json"
LOG_FILE: Final = "launcher.log"
ADAPTER_FOLDER: Final = "adapter"
_CONFIG: Final = "surgery_sweep"
_HEADER: Final = (
    "One job for each point of a grid of recipes and knobs, such as\n"
    "  python -m surgery.sweep -m recipe=genieblue_skip,lora rank=4,8 hydra/launcher=joblib\n"
    "A bare key is a field of the recipe or a knob; `surgery sweep --help` says more."
)


@dataclass(frozen=True)
class Job:
    """What is done for each grid point.

    Args:
        run: Function of the plan and the job's folder; its result is added to result.json.
        weights: Whether it needs the model's weights; False by default.
        loads: Whether it loads the model, and so takes `trust_remote_code`; False by default.
        go_on: Function for a job that may have been killed before; `run` by default.
    """

    run: Callable[..., dict[str, Any]]
    weights: bool = False
    loads: bool = False
    go_on: Callable[..., dict[str, Any]] | None = None


def _save_plan(plan: Plan, folder: Path) -> dict[str, Any]:
    assert plan.files is not None
    content = side_files(plan, identify(plan.files, plan.anatomy))[PLAN_FILE]
    replace_text(folder / PLAN_FILE, content.decode())
    return {}


def _save_adapter(plan: Plan, folder: Path) -> dict[str, Any]:
    write_adapter(plan, folder / ADAPTER_FOLDER)
    return {}


def _save_rest(plan: Plan, folder: Path) -> dict[str, Any]:
    """An existing adapter folder is complete, and of this very grid point."""
    return {} if _is_there(folder) else _save_adapter(plan, folder)


def _train(
    plan: Plan, folder: Path, *, trust_remote_code: bool, resume: bool = False
) -> dict[str, Any]:
    from surgery.training.train import train_recipe

    out = folder / ADAPTER_FOLDER
    train_recipe(plan.recipe, out, resume=resume, trust_remote_code=trust_remote_code)
    return _trained(folder)


def _train_rest(plan: Plan, folder: Path, *, trust_remote_code: bool) -> dict[str, Any]:
    from surgery.training.run_folder import work_folder

    is_begun = work_folder(folder / ADAPTER_FOLDER).is_dir()
    if _is_there(folder) and not is_begun:
        return _trained(folder)
    return _train(plan, folder, resume=is_begun, trust_remote_code=trust_remote_code)


def _trained(folder: Path) -> dict[str, Any]:
    from surgery.training.log import LOG, last_lines

    stages = last_lines(folder / ADAPTER_FOLDER / LOG)
    return {"stages": stages, "loss": next((s["loss"] for s in reversed(stages.values())), None)}


def _is_there(folder: Path) -> bool:
    return (folder / ADAPTER_FOLDER / PLAN_FILE).is_file()


JOBS: Final = {
    "plan": Job(_save_plan),
    "apply": Job(_save_adapter, weights=True, go_on=_save_rest),
    "train": Job(_train, weights=True, loads=True, go_on=_train_rest),
}
"""The jobs by name: one line adds one."""


def run_points(settings: HydraSettings, indices: Sequence[int], job: str, resume: bool) -> str:
    """Let Hydra run the job for grid points of the sweep's points.json.

    Args:
        settings: Result of `read_settings`.
        indices: Indices of the grid points, at least one.
        job: A name in `JOBS`.
        resume: Whether jobs of these grid points may have been killed before.

    Returns:
        Why Hydra gave up, or nothing; a job that fails says so in its result.json.
    """
    key = "hydra.sweep.dir" if settings.multirun else "hydra.run.dir"
    overrides = [
        *settings.overrides,
        f"{key}={_quoted(settings.folder)}",
        f"points={_quoted(settings.folder / POINTS_FILE)}",
        f"point={','.join(map(str, indices))}",
        f"job={job}",
        f"resume={resume}",
    ]
    if settings.multirun and not any("hydra.sweep.subdir=" in override for override in overrides):
        overrides.append("hydra.sweep.subdir=${point}")
    try:
        with _full_errors(), _stderr_to(settings.folder / LOG_FILE, settings):
            start_hydra([*(["--multirun"] if settings.multirun else []), *overrides])
    except Exception as error:  # a launcher may raise anything
        return named_line(error)
    return ""


def start_hydra(arguments: Sequence[str]) -> None:
    """Run `hydra.main` as if `arguments` had been typed: it reads `sys.argv`, and nothing else."""
    _register()
    typed, sys.argv = sys.argv, ["surgery.sweep", *arguments]
    folder = str(recipes_folder())
    main = hydra.main(version_base=HYDRA_VERSION_BASE, config_path=folder, config_name=_CONFIG)
    try:
        with _root_logger_restored():
            main(run_point)()
    finally:
        sys.argv = typed


@contextlib.contextmanager
def _root_logger_restored() -> Iterator[None]:
    """Hydra gives the root logger handlers of its own, bound to the streams of that moment."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def run_point(config: DictConfig) -> None:
    """The job that Hydra's launchers run, in any process: one grid point, one result.json.

    Args:
        config: `points` is the path of points.json, `point` an index in it, `job` a name in `JOBS`,
            `resume` whether the job may have been killed before.
    """
    settings = HydraConfig.get().runtime
    folder, started = Path(settings.output_dir), perf_counter()
    with contextlib.chdir(settings.cwd):
        entry, recipe, trusted = read_point(Path(config.points), config.point)
        job = JOBS[config.job]
        run = (job.go_on if config.resume else None) or job.run
        outcome = _outcome(recipe, replace(job, run=run), folder, trusted)
    write_result(folder, {**entry, **outcome, "seconds": round(perf_counter() - started, 3)})


def _outcome(recipe: Recipe, job: Job, folder: Path, trusted: bool) -> dict[str, Any]:
    described = {"model": recipe.model, "knobs": recipe.resolved()["knobs"]}
    try:
        plan = plan_recipe(recipe, weights=job.weights, trust_remote_code=trusted)
        options = {"trust_remote_code": trusted} if job.loads else {}
        return {**described, **plan_outcome(plan), **job.run(plan, folder, **options)}
    except SurgeryError as error:
        return {**described, **crashed(error.diagnostics)}
    except Exception as error:  # one job's bug must not end the others
        return {
            **described,
            **crashed([diagnostic("A502.crashed", reason=named_line(error))]),
        }


def _register() -> None:
    """Register the configuration of a sweep; recipes and jobs are groups, for Hydra's `--help`."""
    store = ConfigStore.instance()
    defaults = [{"recipe": None}, {"job": "plan"}, "_self_"]
    node = {"points": None, "point": None, "resume": False}
    hydras = {"help": {"app_name": "surgery.sweep", "header": _HEADER}, "job": {"name": "sweep"}}
    store.store(_CONFIG, {"defaults": defaults, **node, "hydra": hydras})
    for name in packaged_recipes():
        store.store(name, {"recipe": name}, group="recipe", package="_global_")
    for name in JOBS:
        store.store(name, {"job": name}, group="job", package="_global_")


@contextlib.contextmanager
def _full_errors() -> Iterator[None]:
    """Let Hydra raise its errors instead of printing them and exiting; it has no other switch."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before


@contextlib.contextmanager
def _stderr_to(log: Path, settings: HydraSettings) -> Iterator[None]:
    """Redirect what the launcher's processes write to stderr into a file, except this process's.

    They inherit the descriptor, and launchers take no other: a library that shows the progress of a
    download, or dies, would write into the lines of the sweep.
    """
    if not settings.quiet or settings.launcher == "basic":
        yield
        return
    with log.open("w") as file, os.fdopen(os.dup(2), "w", buffering=1) as ours:
        os.dup2(file.fileno(), 2)
        try:
            with contextlib.redirect_stderr(ours):
                yield
        finally:
            os.dup2(ours.fileno(), 2)


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
