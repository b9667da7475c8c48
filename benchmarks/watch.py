"""Run a command and watch the memory of all its processes together."""

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from measure import child_environment

_EVERY = 0.1  # seconds


def watched(
    command: Sequence[str | Path],
    env: Mapping[str, str] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run a command to its end; return its seconds, and the peak MB (1e6) of it and its children.

    Resident memory is added up, so that pages which two processes share count twice.

    Args:
        command: the program and its arguments.
        env: what its environment has besides this one's.
        stop: asked ten times a second; kills the command and its children once it says so.
    """
    started, peak = time.perf_counter(), 0
    with subprocess.Popen([str(c) for c in command], env=child_environment(env)) as child:
        process = psutil.Process(child.pid)
        while child.poll() is None:
            family = [process, *_children(process)]
            peak = max(peak, sum(map(_resident, family)))
            if stop():
                _kill(family)
            time.sleep(_EVERY)
    seconds = time.perf_counter() - started
    if child.returncode and not stop():
        raise RuntimeError(f"{command} ended with {child.returncode}")
    return {"seconds": seconds, "peak_mb": peak / 1e6}


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0


def _kill(family: Sequence[psutil.Process]) -> None:
    for process in family:
        try:
            process.kill()
        except psutil.Error:
            continue
