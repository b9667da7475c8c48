"""`make support`: every model type in a process of its own, and a table of what was found."""

import argparse
import multiprocessing as mp
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Final

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import peft  # noqa: F401  loaded once, for all that are forked from here
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from support.conform import OPERATIONS, Row, conform
from support.model_types import all_types
from support.report import Report, read_rows
from surgery.model.quiet import quiet

FOLDER: Final = Path(__file__).parents[2] / "docs" / "reference"
_LIMIT: Final = 300.0  # seconds for one type


@dataclass
class _Job:
    """A type that is being tried in a process of its own."""

    row: Row
    process: BaseProcess
    answer: Connection
    started: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the types that were asked for and write the table."""
    asked = _parser().parse_args(arguments)
    shard, shards = map(int, asked.shard.split("/"))
    types = asked.types.split(",") if asked.types else all_types()[shard - 1 :: shards]
    operations = asked.operations.split(",") if asked.operations else []
    out = asked.out
    out.mkdir(parents=True, exist_ok=True)
    is_complete = not asked.types and shards == 1 and operations == list(OPERATIONS)
    report = Report(out, {} if is_complete else read_rows(out))
    with tempfile.TemporaryDirectory(prefix="support-") as folder:
        os.environ["SURGERY_CACHE"] = folder
        torch.set_num_threads(1)
        started = time.perf_counter()
        _run(types, operations, asked.processes, report)
        seconds = time.perf_counter() - started
    print("\n".join(report.totals()))
    print(f"this run took {seconds:.0f} s")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m support.run", description=__doc__)
    parser.add_argument("--types", default="", help="some model types, by commas")
    parser.add_argument("--operations", default=",".join(OPERATIONS), help="some, or none: ''")
    parser.add_argument("--shard", default="1/1", help="which part of all types, such as 2/4")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=FOLDER)
    return parser


def _run(types: Sequence[str], operations: Sequence[str], processes: int, report: Report) -> None:
    """Add a row for each type, and say what it found; the files are whole after each."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn()) as progress:
        task = progress.add_task("types", total=len(types))
        for row in _rows(types, operations, processes):
            report.add(row)
            found = ", ".join(f"{op} {outcome}" for op, outcome in row.outcomes.items())
            line = f"{row.model_type} {row.seconds:.0f} s  {row.reason or found or row.blocks}"
            progress.console.print(line, markup=False)
            progress.advance(task)


def _rows(types: Sequence[str], operations: Sequence[str], processes: int) -> Iterator[Row]:
    waiting, running = list(types), list[_Job]()
    while waiting or running:
        while waiting and len(running) < processes:
            running.append(_start(waiting.pop(0), operations))
        wait([job.answer for job in running], timeout=1.0)
        for job in list(running):
            if job.answer.poll() or time.perf_counter() - job.started > _LIMIT:
                running.remove(job)
                yield _finish(job)


def _start(model_type: str, operations: Sequence[str]) -> _Job:
    ours, theirs = mp.Pipe(duplex=False)
    context = mp.get_context("fork")
    process = context.Process(target=_work, args=(model_type, operations, theirs), daemon=True)
    process.start()
    theirs.close()
    return _Job(Row(model_type), process, ours, time.perf_counter())


def _work(model_type: str, operations: Sequence[str], answer: Any) -> None:
    with quiet():
        answer.send(asdict(conform(model_type, operations)))


def _finish(job: _Job) -> Row:
    """The row of a process that has answered, died, or taken too long."""
    job.row.seconds = time.perf_counter() - job.started
    try:
        row = Row(**job.answer.recv()) if job.answer.poll() else job.row
        row.reason = row.reason or ("" if row is not job.row else f"took over {_LIMIT:.0f} s")
    except EOFError:
        row = job.row
        row.reason = f"its process ended with {job.process.exitcode}"
    job.process.kill()
    job.process.join()
    return row


if __name__ == "__main__":
    main()
