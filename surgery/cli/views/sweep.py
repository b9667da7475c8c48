"""A sweep for a person: a line for each job as it ends, then one table."""

from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from surgery.cli.views.terminal import err, out, plain_table, print_table
from surgery.diagnostics.wording import counted
from surgery.plan.summary import human_bytes
from surgery.sweep.results import Result, first_error

_NUMBERS = ("added", "trainable", "frozen")


def print_started(count: int, job: str, launcher: str, folder: Path) -> None:
    """Say on stderr what begins."""
    points = counted(count, "point")
    line = f"Sweep: {points} planned, job {job} by launcher {launcher}, in {_shown(folder)}"
    err().print(line, soft_wrap=True)


def print_finished(result: Result, done: int, count: int) -> None:
    """Say on stderr that a job ended.

    Args:
        result: its result.json.
        done: how many have ended.
        count: how many there are.
    """
    name = " ".join((result["recipe"], *result["swept"]))
    verdict = first_error(result) or f"done in {result['seconds']:.1f} s"
    line = f"[{done}/{count}] {result['point']} {name}: {verdict}"
    err().print(line, soft_wrap=True)


def print_results(results: Sequence[Result], folder: Path) -> None:
    """Print the table of points to stdout, and where the results are."""
    losses = ["loss"] if any("loss" in result for result in results) else []
    numbers = (*_NUMBERS, "bytes", *losses)
    columns = ("point", "recipe", "knobs", *numbers, "status")
    table = plain_table(*columns, numbers=numbers, words=("recipe", "knobs", "status"))
    for result in results:
        loss = [f"{result['loss']:.4f}" if result.get("loss") else ""] if losses else []
        *cells, status = _cells(result)
        table.add_row(*cells, *loss, status)
    print_table(table)
    failed = sum(result["status"] == "failed" for result in results)
    ends = f"{len(results) - failed} done" + (f", {failed} failed" if failed else "")
    out().print(f"Sweep: {ends}. Results in {_shown(folder)}", soft_wrap=True)


def _cells(result: Result) -> list[str | Text]:
    counts = result["parameters"] or {}
    numbers = [f"{counts[key]:,}" if key in counts else "" for key in _NUMBERS]
    size = human_bytes(result["bytes"]["adapter"]) if result["bytes"] else ""
    notes = [Text(f"({note})", "dim") for note in result["notes"]]
    failed = result["status"] == "failed"
    status = Text(f"failed: {first_error(result)}", "red") if failed else Text("done", "green")
    return [
        str(result["point"]),
        result["recipe"],
        Text(" ").join([*map(Text, result["swept"]), *notes]),
        *numbers,
        size,
        status,
    ]


def _shown(folder: Path) -> str:
    here = Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)
