"""What the checks found, for a person, and which of them runs meanwhile."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rich.markup import escape
from rich.table import Table

from surgery.reporters.terminal import err, out

if TYPE_CHECKING:
    from surgery.verify import Verification

_COLOURS: Final = {"passed": "green", "failed": "bold red", "skipped": "dim"}


@contextmanager
def check_progress() -> Iterator[Callable[[str], None]]:
    """Yield a function that takes the name of each step when it begins.

    A terminal shows a spinner with the step; elsewhere each step is a line once it is done.
    """
    if err().is_terminal:
        with err().status("") as status:
            yield lambda step: status.update(escape(_words(step)))
        return
    running: list[tuple[str, float]] = []

    def finish() -> None:
        if running:
            step, started = running.pop()
            seconds = time.perf_counter() - started
            err().print(f"{_words(step)}: {seconds:.1f} s", soft_wrap=True, highlight=False)

    def begin(step: str) -> None:
        finish()
        running.append((step, time.perf_counter()))

    yield begin
    finish()


def print_verification(verification: "Verification") -> None:
    """Print one row for each check, and one last line."""
    adapter, model = escape(verification.adapter), escape(verification.model)
    out().print(f"[bold]{adapter}[/] ({verification.recipe}) on {model}", soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("check", no_wrap=True)
    table.add_column("result", no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("what")
    for outcome in verification.outcomes:
        state = f"[{_COLOURS[outcome.state]}]{outcome.state}[/]"
        table.add_row(_words(outcome.check), state, f"{outcome.seconds:.1f}", escape(outcome.what))
    out().print(table)
    out().print(_last_line(verification), soft_wrap=True)


def _last_line(verification: "Verification") -> str:
    states = [outcome.state for outcome in verification.outcomes]
    counts = [f"{states.count(s)} {s}" for s in _COLOURS if s in states]
    verdict = "[green]verified[/]" if verification.passed else "[bold red]not verified[/]"
    return f"Checks: {', '.join(counts)}: {verdict}."


def _words(name: str) -> str:
    return name.replace("_", " ")
