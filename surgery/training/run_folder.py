"""The folder of a training that is not done: checkpoints, the log, and of which recipe they are."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.plan.serialization import first_difference, to_json
from surgery.recipe.schema import Recipe
from surgery.storage.atomic_text import replace_text
from surgery.storage.claim import sibling_path
from surgery.storage.disk_errors import io_errors
from surgery.storage.inputs import Input, refuse_inputs
from surgery.storage.staging import (
    claimed_output,
    discard,
    discarded,
    refuse_occupied,
    staged_folder,
)
from surgery.training.distributed import this_process
from surgery.training.log import LOG

RECIPE: Final = "recipe.json"
DATA: Final = "data.json"
"""What the files of each stage are known by."""
TRAINED: Final = "trained.safetensors"
"""What a checkpoint holds of the model, and a stage when it is done: the parameters that train, by
their names in memory."""
COMPLETE: Final = "complete"
"""The file that a checkpoint gets last."""
Warn = Callable[[Sequence[Diagnostic]], None]
_BOARD: Final = "runs"


def work_folder(out: Path) -> Path:
    """Where the checkpoints and the log of a training are until its adapter is whole."""
    real = Path(os.path.realpath(out))
    return sibling_path(out if Path(os.path.abspath(out)) == real else real, "{}.training")


@contextmanager
def opened_work(
    out: Path,
    recipe: Recipe,
    inputs: Iterable[Input],
    *,
    resume: bool,
    overwrite: bool,
    warn: Warn | None = None,
) -> Iterator[Path]:
    """Claim `out`, and make the folder of its training or go on in it.

    Where the body raises before anything was trained, that folder goes.

    Args:
        out: Where the adapter will be.
        recipe: What is trained.
        inputs: What is read for it.
        resume: Go on with what lies there; begin where nothing does, since a kill may fall before
            the folder is made.
        overwrite: Begin anew, and later replace `out`.
        warn: Called where there is nothing to go on with.

    Raises:
        SurgeryError: T106, if a training lies there; T107, if one of another recipe does; A301 to
            A308 for `out` and the disk.
    """
    work, inputs = work_folder(out), [*inputs]
    document = json.loads(to_json(recipe.resolved()))
    with ExitStack() as claims:
        with this_process().main_process_first(), io_errors(work):
            if this_process().is_main_process:
                refuse_inputs(work, inputs)
                is_locked = claims.enter_context(claimed_output(out, inputs))
                _refuse_foreign(work)
                if not (resume and _is_begun(work, out)):
                    refuse_occupied(out, overwrite)
                    _refuse_unfinished(work, overwrite, is_locked)
                    _begin(work, document)
                    if resume and warn:
                        warn([_nothing_there(work)])
                else:
                    _continue(work, out, document, overwrite)
        try:
            yield work
        except BaseException:
            if this_process().is_main_process and not _has_progress(work):
                shutil.rmtree(work, ignore_errors=True)
            raise


def is_result(work: Path, out: Path) -> bool:
    """Whether an adapter folder is what a training has become, which was killed before it cleared.

    Its log tells, which has the times of its steps and arrives with the rest of the folder.
    """
    logs = [place / LOG for place in (work, discarded(work), out)]
    *begun, done = [log.read_bytes() if log.is_file() else b"" for log in logs]
    return bool(done) and done in begun


def close_work(work: Path) -> None:
    """Remove a training that is done, or the rest of one; its log goes last."""
    with io_errors(work):
        for stage in [path for path in work.glob("*") if path.is_dir()]:
            shutil.rmtree(stage)
        discard(work)


def copy_log(work: Path, folder: Path) -> None:
    """Copy the log of a training, and what TensorBoard shows, into the adapter folder."""
    shutil.copy(work / LOG, folder / LOG)
    for runs in work.glob(f"*/{_BOARD}"):
        shutil.copytree(runs, folder / _BOARD / runs.parent.name)


def _has_progress(work: Path) -> bool:
    patterns = (f"*/{TRAINED}", f"*/*/{COMPLETE}")
    return any(True for pattern in patterns for _ in work.glob(pattern))


def _begin(work: Path, document: dict[str, object]) -> None:
    if work.exists():
        discard(work)
    with staged_folder(work) as folder:
        (folder / RECIPE).write_text(to_json(document), encoding="utf-8")


def _is_begun(work: Path, out: Path) -> bool:
    return (work / RECIPE).exists() or is_result(work, out)


def _continue(work: Path, out: Path, document: dict[str, object], overwrite: bool) -> None:
    """Go on with what lies there, which may be the rest of a training that is done."""
    is_done = is_result(work, out)
    if not is_done:
        refuse_occupied(out, overwrite)
    _refuse_other(discarded(work) if is_done and not work.exists() else work, document)


def _refuse_foreign(work: Path) -> None:
    """Refuse to go on in, or to remove, what no training made."""
    if os.path.lexists(work) and not (work / RECIPE).is_file():
        if work.is_dir() and not any(work.iterdir()):
            return
        raise SurgeryError(_not_a_training(work))


def _refuse_unfinished(work: Path, overwrite: bool, is_locked: bool) -> None:
    """Refuse to begin anew over something to go on with, or over what may be another's."""
    if (work / RECIPE).exists() and not overwrite and (_has_progress(work) or not is_locked):
        raise SurgeryError(_unfinished(work))


def _refuse_other(work: Path, document: dict[str, object]) -> None:
    begun = json.loads((work / RECIPE).read_bytes())
    difference = first_difference(begun, document)
    if difference:
        raise SurgeryError(_other_recipe(work, difference))


def refuse_other_data(work: Path, digests: Mapping[str, Sequence[str]]) -> None:
    """Note what a training's data is known by, or refuse other data than it began with.

    Args:
        work: Of the training.
        digests: For each stage, of its files.

    Raises:
        SurgeryError: T107, naming the stage.
    """
    file, found = work / DATA, {stage: [*of_files] for stage, of_files in digests.items()}
    with this_process().main_process_first(), io_errors(work):
        if this_process().is_main_process and not file.exists():
            replace_text(file, to_json(found))
        begun = json.loads(file.read_bytes())
    changed = next((stage for stage, each in found.items() if begun.get(stage) != each), None)
    if changed is not None:
        raise SurgeryError(_other_data(work, changed))


def _other_data(work: Path, stage: str) -> Diagnostic:
    return Diagnostic(
        code="T107",
        what=f"the training in `{work}` began with other data of the stage `{stage}`",
        why="a data file has another content, or an image another size or time, under the name of "
        "before",
        fix="put the data back (images with their times, as `cp -p` does), or begin anew with "
        "`--overwrite`",
    )


def _unfinished(work: Path) -> Diagnostic:
    return Diagnostic(
        code="T106",
        what=f"a training that was not finished lies in `{work}`",
        fix="go on with `--resume`, begin anew with `--overwrite`, or choose another `--out`",
    )


def _not_a_training(work: Path) -> Diagnostic:
    return Diagnostic(
        code="A305",
        what=f"`{work}` is in the way, and not a training that surgery began",
        why=f"checkpoints go there, and it holds no {RECIPE}",
        fix="choose another `--out`, or move it away",
    )


def _nothing_there(work: Path) -> Diagnostic:
    return Diagnostic(
        code="T107",
        what=f"there is no training to go on with in `{work}`: it begins",
        why="none was begun for this `--out`, or it was ended before its folder was made",
        severity="note",
    )


def _other_recipe(work: Path, difference: str) -> Diagnostic:
    return Diagnostic(
        code="T107",
        what=f"the training in `{work}` is of another recipe",
        why=f"`{difference}` is not what it was",
        fix="give the same overrides as then, or begin anew with `--overwrite`",
    )
