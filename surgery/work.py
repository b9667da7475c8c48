"""The folder of a training that is not done: checkpoints, the log, and of which recipe they are."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from surgery.diagnostic import Diagnostic, SurgeryError
from surgery.document import first_difference
from surgery.processes import this_process
from surgery.recipe import Recipe
from surgery.staging import io_errors, refuse_occupied
from surgery.training_log import LOG

RECIPE: Final = "recipe.json"
_BOARD: Final = "runs"


def work_folder(out: Path) -> Path:
    """Where the checkpoints and the log of a training are until its adapter is whole."""
    return out.with_name(f"{out.name}.training")


@contextmanager
def opened_work(out: Path, recipe: Recipe, *, resume: bool, overwrite: bool) -> Iterator[Path]:
    """Make the folder of a training, or go on in it; one without a checkpoint goes with an error.

    Args:
        out: where the adapter will be.
        recipe: what is trained.
        resume: go on with what lies there.
        overwrite: begin anew, and later replace `out`.

    Raises:
        SurgeryError: T106, if a training lies there; T107, if there is none to go on with, or one
            of another recipe; A301 to A305 for `out` and the disk.
    """
    work = work_folder(out)
    with this_process().main_process_first(), io_errors(work):
        if this_process().is_main_process:
            refuse_occupied(out, overwrite)
            _make(work, json.loads(json.dumps(recipe.resolved())), resume, overwrite)
    try:
        yield work
    except SurgeryError:
        if this_process().is_main_process and not any(work.glob("*/*checkpoint*")):
            shutil.rmtree(work)
        raise


def close_work(work: Path, out: Path) -> None:
    """Take the log into the adapter folder, and remove the rest."""
    with io_errors(out):
        shutil.copy(work / LOG, out / LOG)
        for runs in work.glob(f"*/{_BOARD}"):
            shutil.copytree(runs, out / _BOARD / runs.parent.name)
        shutil.rmtree(work)


def _make(work: Path, document: dict[str, object], resume: bool, overwrite: bool) -> None:
    if overwrite and not resume:
        shutil.rmtree(work, ignore_errors=True)
    _refuse_other(work, document, resume)
    work.mkdir(parents=True, exist_ok=True)
    (work / RECIPE).write_text(json.dumps(document, indent=1), encoding="utf-8")


def _refuse_other(work: Path, document: dict[str, object], resume: bool) -> None:
    if not (work / RECIPE).exists():
        if resume:
            raise SurgeryError(_nothing_there(work))
        return
    if not resume:
        raise SurgeryError(_lies_there(work))
    begun = json.loads((work / RECIPE).read_bytes())
    difference = first_difference(begun, document)
    if difference:
        raise SurgeryError(_other_recipe(work, difference))


def _lies_there(work: Path) -> Diagnostic:
    return Diagnostic(
        code="T106",
        what=f"a training that was not finished lies in `{work}`",
        fix="go on with `--resume`, begin anew with `--overwrite`, or choose another `--out`",
    )


def _nothing_there(work: Path) -> Diagnostic:
    return Diagnostic(
        code="T107",
        what="there is no training to go on with",
        why=f"`{work}` doesn't exist: the training was finished, or had another `--out`",
        fix="leave `--resume` out",
    )


def _other_recipe(work: Path, difference: str) -> Diagnostic:
    return Diagnostic(
        code="T107",
        what=f"the training in `{work}` is of another recipe",
        why=f"`{difference}` is not what it was",
        fix="give the same overrides as then, or begin anew with `--overwrite`",
    )
