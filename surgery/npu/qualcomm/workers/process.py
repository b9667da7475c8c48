"""Run a module of this package in a process of its own, which may crash or hang."""

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

LIMIT: Final = 600.0
"""Seconds that a step may take."""
_BOOT: Final = """
import ast, runpy, sys
_, module, path, *words = sys.argv
sys.path[:], sys.argv = ast.literal_eval(path), [module, *words]
runpy.run_module(module, run_name="__main__")
"""
"""Imports from where this process does: `python -m` would look in the user's folder first."""
_PAUSE: Final = 0.02
_LATE: Final = "took more than"
_LAST_CHARACTERS: Final = 300


def run_process(
    module: str, arguments: Sequence[str], files: Sequence[Path], log: Path, seconds: float = LIMIT
) -> str:
    """Run a module until it has written all files, in their order.

    Args:
        module: dotted name.
        arguments: its arguments.
        files: what it writes, one a step.
        log: where its standard error goes.
        seconds: that a step may take.

    Returns:
        How it ended, as half a sentence, where files are missing; empty where none is.
    """
    with log.open("w") as errors:
        process = subprocess.Popen(
            command_of(module, arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
    try:
        late = any(_is_late(process, file, seconds) for file in files)
    finally:
        process.kill()
        process.wait()
    if all(file.exists() for file in files):
        return ""
    return f"{_LATE} {seconds:g} s" if late else ending(process.returncode, log)


def is_late(ended: str) -> bool:
    """Whether what is reported of a process's end is that it had no time left."""
    return _LATE in ended


def command_of(module: str, arguments: Sequence[str]) -> list[str]:
    """Return the command that runs a module, found where this process would find it.

    Args:
        module: dotted name.
        arguments: its arguments.
    """
    return [sys.executable, "-P", "-c", _BOOT, module, repr(sys.path), *arguments]


def _is_late(process: "subprocess.Popen[bytes]", file: Path, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while process.poll() is None and not file.exists():
        if time.monotonic() > deadline:
            return True
        time.sleep(_PAUSE)
    return False


def ending(code: int, log: Path) -> str:
    """Say how a process ended, as half a sentence.

    Args:
        code: its return code; below 0 for a signal.
        log: its standard error.
    """

    if code < 0:
        return f"was ended by signal {-code}"
    last = log.read_text(errors="replace").strip().splitlines()[-1:]
    return f"ended with code {code}: {''.join(last)[:_LAST_CHARACTERS]}"


def peak_bytes() -> int:
    """Return the most memory that this process has taken (VmHWM of proc(5)); 0 where not known."""
    return next(_peaks(), 0)


def _peaks() -> Iterator[int]:
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return (int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
