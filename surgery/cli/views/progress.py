"""Progress on long work: a bar on a terminal, a plain line otherwise."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from surgery.cli.views.terminal import err
from surgery.plan.summary import human_bytes
from surgery.storage.safetensors.checkpoint import Progress as Step


@contextmanager
def byte_progress(title: str, total: int) -> Iterator[Step]:
    """Yield a function that takes the bytes of each step.

    Args:
        title: what is being done.
        total: bytes in all.
    """
    if err().is_terminal:
        columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
        name = TextColumn("{task.description}", markup=False)
        with Progress(name, *columns, console=err(), transient=True) as bar:
            task = bar.add_task(title, total=total)
            yield lambda done: bar.advance(task, done)
        return
    started = time.perf_counter()
    yield lambda done: None
    seconds = time.perf_counter() - started
    err().print(f"{title}: {human_bytes(total)} in {seconds:.1f} s", soft_wrap=True)
