"""A training while it runs, and how its stages ended."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from surgery.cli.views.diagnostics import print_diagnostics
from surgery.cli.views.terminal import err, out
from surgery.diagnostics.wording import counted

if TYPE_CHECKING:
    from surgery.training.log import LogLine
    from surgery.training.stage import StageResult


@contextmanager
def training_progress() -> Iterator[Callable[["LogLine"], None]]:
    """Yield a function that takes each line of the log: a bar on a terminal, else a plain line."""
    if not err().is_terminal:
        yield lambda logged: err().print(f"{_position(logged)}  {_figures(logged)}", soft_wrap=True)
        return
    name = TextColumn("{task.description}", markup=False)
    figures = TextColumn("{task.fields[figures]}", markup=False)
    with Progress(name, BarColumn(), MofNCompleteColumn(), figures, console=err()) as bar:
        tasks: dict[str, object] = {}

        def show(logged: "LogLine") -> None:
            if logged.stage not in tasks:
                tasks[logged.stage] = bar.add_task(logged.stage, total=logged.steps, figures="")
            task: int = tasks[logged.stage]  # type: ignore[assignment]
            bar.update(task, completed=logged.step, figures=_figures(logged))  # type: ignore[arg-type]

        yield show


def print_trained(results: "list[StageResult]", folder: Path) -> None:
    """Print one line for each stage, what was left out of its data, and where the adapter is."""
    for result in results:
        bad = counted(result.skipped, "bad record")
        skipped = f", {bad} left out" if result.skipped else ""
        steps = counted(result.steps, "step")
        out().print(f"{result.name}: {steps}, {result.parameters:,} parameters{skipped}")
        print_diagnostics([*result.bad])
    out().print(f"Trained: {folder}", soft_wrap=True)
    out().print(f"  next: surgery verify {folder}", style="dim", soft_wrap=True)


def _position(logged: "LogLine") -> str:
    return f"{logged.stage} {logged.step}/{logged.steps}"


def _figures(logged: "LogLine") -> str:
    left = timedelta(seconds=round(logged.seconds_left))
    return f"loss {logged.loss:.4f}  {logged.tokens_per_second:,.0f} tokens/s  {left} left"
