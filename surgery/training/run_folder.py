"""The folder of an unfinished training: checkpoints, the log, and the recipe they belong to."""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from surgery.diagnostics.catalog import diagnostic
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
"""File with the digests of each stage's data."""
TRAINED: Final = "trained.safetensors"
"""File of a checkpoint, or of a finished stage, with the parameters that train, by their names in
memory."""
COMPLETE: Final = "complete"
"""File that is written last to a checkpoint."""
Warn = Callable[[Sequence[Diagnostic]], None]
_BOARD: Final = "runs"


def work_folder(out: Path) -> Path:
    """Path of the checkpoints and the log of a training until its adapter is complete."""
    real = Path(os.path.realpath(out))
    return sibling_path(out if Path(os.path.abspath(out)) == real else real, "{}.training")


@contextmanager
def open_work_folder(
    out: Path,
    recipe: Recipe,
    inputs: Iterable[Input],
    *,
    resume: bool,
    overwrite: bool,
    warn: Warn | None = None,
) -> Iterator[Path]:
    """Claim `out`, and make the folder of its training or resume in it.

    If the body raises before anything was trained, that folder is removed.

    Args:
        out: Path of the adapter folder to make.
        recipe: The trained recipe.
        inputs: Paths that are read for it.
        resume: Whether to resume an unfinished training; without one it begins, since a kill may
            come before the folder is made.
        overwrite: Whether to begin again, and later replace `out`.
        warn: Callback for the note that there is nothing to resume.

    Raises:
        SurgeryError: T106, for an unfinished training; T107, for one of another recipe; A301 to
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
                        warn([diagnostic("T107.no_training", work=work)])
                else:
                    _continue(work, out, document, overwrite)
        try:
            yield work
        except BaseException:
            if this_process().is_main_process and not _has_progress(work):
                shutil.rmtree(work, ignore_errors=True)
            raise


def is_result(work: Path, out: Path) -> bool:
    """Whether an adapter folder is the result of a training that was killed before it cleaned up.

    Its log tells, which has the times of its steps and is moved with the rest of the folder.
    """
    logs = [folder / LOG for folder in (work, discarded(work), out)]
    *begun, done = [log.read_bytes() if log.is_file() else b"" for log in logs]
    return bool(done) and done in begun


def close_work(work: Path) -> None:
    """Remove the folder of a finished training; its log goes last."""
    with io_errors(work):
        for stage in [path for path in work.glob("*") if path.is_dir()]:
            shutil.rmtree(stage)
        discard(work)


def copy_log(work: Path, folder: Path) -> None:
    """Copy the log of a training, and TensorBoard's files, to the adapter folder."""
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
    """Resume an unfinished training, or what is left of a finished one."""
    is_done = is_result(work, out)
    if not is_done:
        refuse_occupied(out, overwrite)
    _refuse_other(discarded(work) if is_done and not work.exists() else work, document)


def _refuse_foreign(work: Path) -> None:
    """Refuse to resume in, or to remove, what no training made."""
    if os.path.lexists(work) and not (work / RECIPE).is_file():
        if work.is_dir() and not any(work.iterdir()):
            return
        raise SurgeryError(diagnostic("A305.training", work=work, recipe=RECIPE))


def _refuse_unfinished(work: Path, overwrite: bool, is_locked: bool) -> None:
    """Refuse to begin again over a training that can be resumed or may be another process's."""
    if (work / RECIPE).exists() and not overwrite and (_has_progress(work) or not is_locked):
        raise SurgeryError(diagnostic("T106", work=work))


def _refuse_other(work: Path, document: dict[str, object]) -> None:
    begun = json.loads((work / RECIPE).read_bytes())
    difference = first_difference(begun, document)
    if difference:
        raise SurgeryError(diagnostic("T107.other_recipe", work=work, difference=difference))


def refuse_other_data(work: Path, digests: Mapping[str, Sequence[str]]) -> None:
    """Record the digests of a training's data, or refuse other data than it began with.

    Args:
        work: Folder of the training.
        digests: Digests of the files of each stage.

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
        raise SurgeryError(diagnostic("T107.other_data", work=work, stage=changed))
