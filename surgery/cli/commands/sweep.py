"""`surgery sweep`, and the same as a Hydra app: `python -m surgery.sweep`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from surgery.cli.arguments import AllowEnv, Format, RemoteCode
from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_NO,
    SurgeryError,
)

if TYPE_CHECKING:
    import argparse

    from surgery.storage.inputs import Input
    from surgery.sweep.grid import GridPoint
    from surgery.sweep.hydra_launcher import HydraSettings

    _Grid = tuple[list[GridPoint], str, list[Input]]

EPILOG = "Example: surgery sweep recipe=genieblue_skip,lora rank=4,8,16 --launcher joblib"

_Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RECIPE|KEY=VALUE",
        help="A recipe, or recipe=A,B; then rank=4,8, rank=range(4,17,4), hydra.launcher.n_jobs=2.",
    ),
]


def command(
    arguments: _Arguments = None,
    job: Annotated[
        str, typer.Option(help="What to do at each point: plan, apply or train.")
    ] = "plan",
    launcher: Annotated[
        str, typer.Option(help="basic, joblib, submitit_local, submitit_slurm or ray.")
    ] = "basic",
    out: Annotated[
        Path | None, typer.Option(help="The sweep's folder; multirun/DATE/TIME unless given.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the sweep in --out where it was ended.")
    ] = False,
    output_format: Format = "human",
    allow_env: AllowEnv = False,
    trust_remote_code: RemoteCode = False,
    multirun: Annotated[bool, typer.Option("-m", "--multirun", hidden=True)] = False,
) -> None:
    """Plan, apply or train every point of a grid of recipes and knobs, by Hydra.

    All points are planned before any job starts. One that fails later doesn't stop the others.
    """
    from surgery.sweep.grid import refuse_code
    from surgery.sweep.hydra_launcher import is_hydra_override, read_settings

    arguments = arguments or []
    refuse_code(arguments)
    hydra_arguments = [argument for argument in arguments if is_hydra_override(argument)]
    if resume and not (out or any(".dir=" in argument for argument in hydra_arguments)):
        raise typer.BadParameter("--resume wants the sweep's folder: give its --out")
    chosen = launcher if not _names_launcher(hydra_arguments) else None
    settings = read_settings(hydra_arguments, launcher=chosen, out=out)
    grid = _plan(arguments, settings, job, allow_env, trust_remote_code)
    raise typer.Exit(_sweep(grid, settings, job, resume=resume, output_format=output_format))


def hydra_app() -> NoReturn:
    """`python -m surgery.sweep`: Hydra's own flags and output, and bare keys as in `surgery`."""
    from surgery.cli.views.diagnostics import print_diagnostics

    try:
        sys.exit(_hydra_app())
    except SurgeryError as error:
        print_diagnostics(error.diagnostics)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


def _hydra_app() -> int:
    from surgery.sweep.hydra_launcher import is_hydra_override, read_flags, read_settings
    from surgery.sweep.jobs import start_hydra

    flags = read_flags()
    arguments: list[str] = flags.overrides
    _refuse_flags(flags)
    if _shows(flags):
        typed = [argument for argument in sys.argv[1:] if argument not in arguments]
        start_hydra([*typed, *(_for_show(argument) for argument in arguments)])
        return EXIT_DONE
    hydra_arguments = [argument for argument in arguments if is_hydra_override(argument)]
    settings = read_settings(hydra_arguments, quiet=False, multirun=flags.multirun)
    jobs = [argument.partition("=")[2] for argument in arguments if argument.startswith("job=")]
    others = [argument for argument in arguments if not argument.startswith("job=")]
    job = jobs[-1] if jobs else "plan"
    grid = _plan(others, settings, job, allow_env=False, trust_remote_code=False)
    return _sweep(grid, settings, job, resume=False, output_format="human")


def _plan(
    arguments: Sequence[str],
    settings: "HydraSettings",
    job: str,
    allow_env: bool,
    trust_remote_code: bool,
) -> "_Grid":
    """Expand and plan the grid."""
    from surgery.diagnostics.wording import nearest
    from surgery.sweep.grid import expand, grid_document, plan_points, read_recipes
    from surgery.sweep.hydra_launcher import is_hydra_override
    from surgery.sweep.jobs import JOBS

    if job not in JOBS:
        raise SurgeryError(diagnostic("R118.job", job=job, known=nearest(job, JOBS)))
    recipes, overrides = read_recipes(
        [argument for argument in arguments if not is_hydra_override(argument)]
    )
    points = expand(recipes, overrides, allow_env=allow_env)
    if len(points) > 1 and not settings.multirun:
        raise SurgeryError(diagnostic("R115.points", count=len(points)))
    trusted = {"trust_remote_code": trust_remote_code, "allow_env": allow_env}
    plans = plan_points(points, weights=JOBS[job].weights, **trusted)
    content = grid_document(points, plans, job, **trusted)
    return points, content, list(dict.fromkeys(item for plan in plans for item in plan.inputs()))


def _sweep(
    grid: "_Grid", settings: "HydraSettings", job: str, *, resume: bool, output_format: str
) -> int:
    """Leave the grid in the sweep's folder, or take up the one that lies there, and run it."""
    from surgery.cli.views.diagnostics import print_diagnostics
    from surgery.storage.staging import claimed_output
    from surgery.sweep.jobs import POINTS_FILE
    from surgery.sweep.results import is_begun, nothing_to_resume, prepare_folder, reopen_folder

    points, content, inputs = grid
    folder, remaining = settings.folder, list(range(len(points)))
    with claimed_output(folder, inputs):
        if resume and is_begun(folder, POINTS_FILE):
            remaining = reopen_folder(folder, POINTS_FILE, content, len(points))
        else:
            prepare_folder(folder, POINTS_FILE, content)
            if resume:
                print_diagnostics([nothing_to_resume(folder)])
        reason = _run(points, remaining, settings, job, resume)
        if reason is None:
            return EXIT_INTERRUPTED
        return _show(points, settings, job, reason, output_format)


def _run(
    points: "list[GridPoint]",
    remaining: "list[int]",
    settings: "HydraSettings",
    job: str,
    resume: bool,
) -> str | None:
    """Run the points that are left; say why Hydra gave up, if it did, or None when interrupted."""
    from surgery.cli.views.sweep import print_finished, print_started
    from surgery.cli.views.terminal import err
    from surgery.sweep.jobs import run_points
    from surgery.sweep.results import Result, watching

    done: list[Result] = []

    def finished(result: Result) -> None:
        done.append(result)
        print_finished(result, len(done), len(points))

    print_started(len(points), job, settings.launcher, settings.folder)
    try:
        with watching(settings.folder, finished):
            return run_points(settings, remaining, job, resume) if remaining else ""
    except KeyboardInterrupt:
        stopped = f"stopped after {len(done)} of {len(points)} points; --resume goes on"
        err().print(stopped, soft_wrap=True)
        return None


def _show(
    points: "list[GridPoint]", settings: "HydraSettings", job: str, reason: str, output_format: str
) -> int:
    """Write the tables, and print one of them."""
    from surgery.cli.views.sweep import print_results
    from surgery.sweep.results import gather_results, write_results

    results = gather_results(settings.folder, points, reason)
    text = write_results(settings.folder, job, results)
    if output_format == "json":
        typer.echo(text, nl=False)
    else:
        print_results(results, settings.folder)
    return EXIT_NO if any(result["status"] == "failed" for result in results) else EXIT_DONE


def _names_launcher(hydra_arguments: Sequence[str]) -> bool:
    return any(argument.lstrip("+").startswith("hydra/launcher=") for argument in hydra_arguments)


def _shows(flags: "argparse.Namespace") -> bool:
    """Whether Hydra is only asked to show something."""
    shows = (flags.help, flags.hydra_help, flags.cfg, flags.info, flags.shell_completion)
    return any(bool(flag) for flag in shows)


def _for_show(argument: str) -> str:
    from surgery.sweep.hydra_launcher import is_hydra_override

    named = argument.startswith(("recipe=", "job=", "+", "~")) or is_hydra_override(argument)
    return argument if named else f"++{argument}"


def _refuse_flags(flags: "argparse.Namespace") -> None:
    if flags.experimental_rerun or flags.config_path or flags.config_name or flags.config_dir:
        raise SurgeryError(diagnostic("R118.flags"))
    if flags.multirun and _shows(flags):
        raise SurgeryError(diagnostic("R118.multirun"))
