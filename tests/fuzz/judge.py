"""Run a command in this process, and judge its end: a result or a sentence, within ten seconds.

The seconds are the processor's, so that a busy machine makes no hang; what only waits is ended too.
"""

import contextlib
import io
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from hypothesis import HealthCheck, settings

from surgery.cli import main
from surgery.diagnostics.diagnostic import (
    EXIT_DONE,
    EXIT_ENVIRONMENT,
    EXIT_NO,
    EXIT_USAGE,
    SurgeryError,
)

INPUTS: Final = int(os.environ.get("SURGERY_FUZZ", "60"))
"""How many inputs all tests of this folder try together; `make fuzz` tries 10,000."""

_LIMIT: Final = 10.0  # seconds of the processor
_WAIT: Final = 120.0  # seconds of the clock
_MEMORY: Final = 8 << 30  # bytes: a bomb must burst here, not take the machine along
_DOCUMENTED: Final = (EXIT_DONE, EXIT_NO, EXIT_USAGE, EXIT_ENVIRONMENT)


def inputs(share: float) -> settings:
    """The settings of a test that tries a share of all inputs; the same ones in every run."""
    return settings(
        max_examples=max(2, round(share * INPUTS)),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


class HangError(BaseException):
    """What interrupts a command that runs for too long; nothing but the judge catches it."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def ends_well(*words: str) -> Ended:
    """Run `surgery WORDS…`, and fail unless it ends as documented, and not by a bug."""
    out, err = _stream("strict"), _stream("backslashreplace")
    typed, sys.argv = sys.argv, ["surgery", *words]
    code, cause = EXIT_DONE, None
    try:
        with _bounded(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        code, cause = end.code or EXIT_DONE, end.__context__
    except HangError:
        raise AssertionError(f"{words}: no end within {_LIMIT:g} s") from None
    finally:
        sys.argv = typed
    ended = Ended(code, _read(out), _read(err))
    trace = "".join(traceback.format_exception(cause, limit=-6)) if cause else ""
    assert ended.code in _DOCUMENTED, f"{words}: exit {ended.code}\n{ended.err}\n{trace}"
    assert ended.code in (EXIT_DONE, EXIT_NO) or ended.err.strip(), f"{words}: no sentence"
    assert "Traceback (most recent call last)" not in ended.err, ended.err
    return ended


def refused(call: Callable[[], Any]) -> SurgeryError | None:
    """Call a function, and return its refusal if there is one; any other error fails."""
    try:
        with _bounded():
            call()
    except SurgeryError as error:
        refusal = error
    except HangError:
        raise AssertionError(f"no end within {_LIMIT:g} s") from None
    else:
        return None
    assert all(diagnostic.what for diagnostic in refusal.diagnostics)
    assert str(refusal)
    return refusal


def _stream(errors: str) -> io.TextIOWrapper:
    """A stream as a terminal in UTF-8 is one, which a lone surrogate can break."""
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors)


def _read(stream: io.TextIOWrapper) -> str:
    stream.seek(0)
    return stream.read()


@contextlib.contextmanager
def _bounded() -> Iterator[None]:
    """Interrupt what takes too long or too much memory."""

    def interrupt(number: int, frame: Any) -> None:
        raise HangError

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    clocks = {signal.SIGPROF: signal.ITIMER_PROF, signal.SIGALRM: signal.ITIMER_REAL}
    before = {number: signal.signal(number, interrupt) for number in clocks}
    started = time.process_time()
    signal.setitimer(signal.ITIMER_PROF, _LIMIT)
    signal.setitimer(signal.ITIMER_REAL, _WAIT)
    resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY, hard))
    try:
        yield
        if time.process_time() - started > _LIMIT:
            raise HangError
    finally:
        for number, clock in clocks.items():
            signal.setitimer(clock, 0)
            signal.signal(number, before[number])
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
