"""What the checks found, for a person, and which of them runs meanwhile."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from rich.text import Text

from surgery.cli.views.terminal import err, out, plain_table, print_table

if TYPE_CHECKING:
    from surgery.verification.runner import Verification

_COLORS: Final = {"passed": "green", "failed": "bold red", "skipped": "dim"}


@contextmanager
def check_progress() -> Iterator[Callable[[str], None]]:
    """Yield a function that takes the name of each step when it begins.

    A terminal shows a spinner with the step; elsewhere each step is a line once it is done.
    """
    if err().is_terminal:
        with err().status("") as status:
            yield lambda step: status.update(Text(_words(step)))
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
    made = f" ({verification.recipe}) on {verification.model}"
    out().print(Text.assemble((verification.adapter, "bold"), made), soft_wrap=True)
    table = plain_table("check", "result", "seconds", "what", numbers=("seconds",), words=("what",))
    for outcome in verification.outcomes:
        state = Text(outcome.state, _COLORS[outcome.state])
        table.add_row(_words(outcome.check), state, f"{outcome.seconds:.1f}", outcome.what)
    print_table(table)
    out().print(_last_line(verification), soft_wrap=True)


def _last_line(verification: "Verification") -> Text:
    states = [outcome.state for outcome in verification.outcomes]
    counts = [f"{states.count(s)} {s}" for s in _COLORS if s in states]
    verdict = ("verified", "green") if verification.passed else ("not verified", "bold red")
    return Text.assemble(f"Checks: {', '.join(counts)}: ", verdict, ".")


def _words(name: str) -> str:
    return name.replace("_", " ")
