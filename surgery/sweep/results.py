"""Results of the jobs of a sweep: one result.json each, and the two tables made of them."""

import csv
import io
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from surgery.adapter.side_files import saved_plan
from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.diagnostics.distribution import own_version
from surgery.plan.planner import Plan
from surgery.plan.serialization import (
    FORMAT_VERSION,
    diagnostic_document,
    first_difference,
    to_json,
)
from surgery.storage.atomic_text import replace_text
from surgery.storage.disk_errors import io_errors
from surgery.storage.staging import refuse_result
from surgery.sweep.grid import GridPoint, describe

RESULT_FILE: Final = "result.json"
RESULTS: Final = "results"
Result = dict[str, Any]
_COUNTS: Final = ("base", "added", "trainable", "frozen", "total")
_GRID: Final = ("job", "trust_remote_code", "points")
_POLL: Final = 0.1  # seconds


def plan_outcome(plan: Plan) -> Result:
    """Counts and sizes of a planned grid point."""
    document = json.loads(saved_plan(plan))
    counts = {key: document[key] for key in ("parameters", "bytes")}
    return {"status": "done", **counts, "diagnostics": document["diagnostics"]}


def crashed(diagnostics: Sequence[Diagnostic]) -> Result:
    """The result of a job that failed."""
    documents = [diagnostic_document(item) for item in diagnostics]
    return {"status": "failed", "parameters": None, "bytes": None, "diagnostics": documents}


def first_error(result: Result) -> str:
    """The first error of a failed job; empty for one that is done."""
    errors = [d for d in result["diagnostics"] if d["severity"] == "error"]
    return str(errors[0]["what"]) if errors else ""


def write_result(folder: Path, result: Result) -> None:
    """Write result.json atomically, so that a reader never sees half of it.

    Raises:
        SurgeryError: A302 to A304 for the disk.
    """
    replace_text(folder / RESULT_FILE, to_json({**result, "folder": str(folder)}))


def prepare_folder(folder: Path, name: str, content: str) -> None:
    """Make the folder of a sweep with its first file.

    Raises:
        SurgeryError: A301, if a sweep or the result of another command is already there; A302 to
            A304 for the disk.
    """
    with io_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    refuse_result(folder)
    own = (name, f"{RESULTS}.json", f"{RESULTS}.csv", f"*/{RESULT_FILE}")
    if any(True for pattern in own for _ in folder.glob(pattern)):
        raise SurgeryError(diagnostic("A301.has_a_sweep", folder=folder))
    files = [path for path in folder.glob("[0-9]*") if not path.is_dir()]
    if files:
        raise SurgeryError(diagnostic("A301.sweep_is_a_file", file=files[0]))
    replace_text(folder / name, content)


def is_begun(folder: Path, name: str) -> bool:
    """Whether a folder has a sweep, by the name of its first file."""
    return (folder / name).exists()


def reopen_folder(folder: Path, name: str, content: str, count: int) -> list[int]:
    """Resume the sweep in a folder, and return the indices of the grid points that are left.

    Grid points whose job failed are among them; their results are removed.

    Args:
        folder: Path of the folder of the sweep.
        name: Name of its first file.
        content: Content of that file for the requested sweep.
        count: Number of grid points.

    Raises:
        SurgeryError: T107, if the folder has another grid, or no sweep.
    """
    asked = json.loads(content)
    try:
        begun = json.loads((folder / name).read_bytes())
        was, now = ({key: grid[key] for key in _GRID} for grid in (begun, asked))
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SurgeryError(diagnostic("T107.no_sweep", name=name, folder=folder)) from error
    difference = first_difference(was, now)
    if difference:
        raise SurgeryError(diagnostic("T107.other_sweep", folder=folder, difference=difference))
    done = set()
    for file in _result_files(folder):
        result = json.loads(file.read_bytes())
        if result["status"] == "done":
            done.add(result["point"])
        else:
            file.unlink()
    return [number for number in range(count) if number not in done]


def nothing_to_resume(folder: Path) -> Diagnostic:
    """The note where `--resume` finds no sweep: a kill may come before its folder is made."""
    return diagnostic("T107.no_result", folder=folder)


@contextmanager
def watching(folder: Path, finished: Callable[[Result], None]) -> Iterator[None]:
    """Call a function with every result.json as it appears, whichever process or machine wrote it.

    Args:
        folder: Path of the folder of the sweep.
        finished: Called once for each job, from another thread.
    """
    seen: set[Path] = set()
    stop = threading.Event()

    def look() -> None:
        for file in sorted(set(_result_files(folder)) - seen):
            seen.add(file)
            finished(json.loads(file.read_bytes()))

    def watch() -> None:
        while not stop.wait(_POLL):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        look()


def gather_results(folder: Path, points: Sequence[GridPoint], reason: str) -> list[Result]:
    """Return the result of every grid point; a job without one failed.

    Args:
        folder: Path of the folder of the sweep.
        points: All grid points.
        reason: Why Hydra gave up; empty if it didn't.

    Raises:
        SurgeryError: A502, if Hydra gave up before any job ran.
    """
    found = [json.loads(file.read_bytes()) for file in _result_files(folder)]
    if reason and not found:
        raise SurgeryError(diagnostic("A502.ended_early", reason=reason))
    by_number = {result["point"]: result for result in found}
    return [by_number.get(point.number) or _without(point, reason) for point in points]


def write_results(folder: Path, job: str, results: Sequence[Result]) -> str:
    """Write results.json and results.csv to the sweep's folder; return the first's text.

    Raises:
        SurgeryError: A302 to A304 for the disk.
    """
    head = {"format_version": FORMAT_VERSION, "surgery": own_version(), "job": job}
    text = to_json({**head, "folder": str(folder), "results": list(results)})
    replace_text(folder / f"{RESULTS}.json", text)
    replace_text(folder / f"{RESULTS}.csv", _csv(results))
    return text


def _result_files(folder: Path) -> list[Path]:
    """One for each job, or that of a single run; deeper folders change while jobs run."""
    return sorted([*folder.glob(RESULT_FILE), *folder.glob(f"*/{RESULT_FILE}")])


def _without(point: GridPoint, reason: str) -> Result:
    why = reason or "its process ended early; the launcher's logs say more"
    missing = crashed([diagnostic("A502.no_result", why=why)])
    described = {**describe(point), "model": None, "knobs": {}}
    return {**described, **missing, "seconds": None, "folder": None}


def _csv(results: Sequence[Result]) -> str:
    knobs = list(dict.fromkeys(f"knobs.{name}" for result in results for name in result["knobs"]))
    columns = ["point", "recipe", "model", "overrides", *knobs, "status", *_COUNTS]
    columns += ["loss"] if any("loss" in result for result in results) else []
    columns += ["adapter_bytes", "written_bytes", "seconds", "folder", "notes", "error"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(_row(result) for result in results)
    return text.getvalue()


def _row(result: Result) -> Result:
    plain = {
        key: result[key] for key in ("point", "recipe", "model", "status", "seconds", "folder")
    }
    sizes = {f"{key}_bytes": size for key, size in (result["bytes"] or {}).items()}
    counts = {key: (result["parameters"] or {}).get(key) for key in _COUNTS}
    counts |= {"loss": result["loss"]} if "loss" in result else {}
    knobs = {f"knobs.{name}": value for name, value in result["knobs"].items()}
    joined = {"overrides": " ".join(result["overrides"]), "notes": "; ".join(result["notes"])}
    return {**plain, **joined, **knobs, **counts, **sizes, "error": first_error(result)}
