"""What every benchmark shares: child processes with their peak memory, turns, machine, results.

Import nothing heavy here: Linux counts a parent's memory into the peak of the child that it starts.
"""

import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Container, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SURGERY = [sys.executable, "-m", "surgery"]
PACKAGES = ("torch", "transformers", "peft", "safetensors")
HEAVY = {"torch", "transformers", "peft"}
COMMAND_THEN_LOOK = """
import sys
from surgery.cli import main
sys.argv = {argv!r}
try:
    main()
except SystemExit:
    pass
print("\\nimported:", *sorted({heavy!r} & set(sys.modules)))
"""

Run = dict[str, Any]
"""One run's numbers; `seconds` at least."""


def run_child(
    command: Sequence[str | Path],
    env: Mapping[str, str] | None = None,
    codes: Container[int] = (0,),
) -> Run:
    """Run a command to its end; return its seconds, peak MB (1e6 bytes) and outputs.

    Args:
        command: the program and its arguments.
        env: what its environment has besides this one's.
        codes: exit codes that are no failure.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        before = os.getloadavg()[0]
        started = time.perf_counter()
        words, around = [str(word) for word in command], child_environment(env)
        child = subprocess.Popen(words, stdout=out, stderr=err, env=around)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - started
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if child.returncode not in codes:
            raise RuntimeError(f"{command} ended with {child.returncode}:\n{err.read()[-3000:]}")
        return {
            "seconds": seconds,
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "peak_mb": usage.ru_maxrss * 1024 / 1e6,
            "load": before,
            "code": child.returncode,
            "stdout": out.read(),
            "stderr": err.read(),
        }


def figures(run: Run) -> Run:
    """Return a run without its outputs and exit code, rounded, as it goes into results.json."""
    measured = {k: v for k, v in run.items() if k != "code" and isinstance(v, float | int)}
    return {k: round(v, 6) for k, v in measured.items()}


def heavy_imports(*arguments: str, env: Mapping[str, str] | None = None) -> list[str]:
    """Run a surgery command and return which of torch, transformers and peft it imported."""
    code = COMMAND_THEN_LOOK.format(argv=["surgery", *arguments], heavy=HEAVY)
    run = run_child([sys.executable, "-c", code], env)
    return run["stdout"].rpartition("imported:")[2].split()


def take_turns(methods: Mapping[str, Callable[[], Run]], rounds: int, seed: int) -> dict:
    """Run each method once a round, in a new order each round, so that drifts hit all alike."""
    order = random.Random(seed)
    runs: dict[str, list[Run]] = {name: [] for name in methods}
    for number in range(1, rounds + 1):
        for name in order.sample(list(methods), len(methods)):
            runs[name].append(figures(methods[name]()))
            print(f"round {number}: {name}: {runs[name][-1]}", flush=True)
    return runs


def median_of(runs: Sequence[Run], key: str = "seconds") -> float:
    return statistics.median(run[key] for run in runs)


def medians(runs: Mapping[str, Sequence[Run]]) -> dict[str, Run]:
    """Return the median of each number of each method."""
    return {
        name: {key: round(median_of(done, key), 6) for key in done[0]}
        for name, done in runs.items()
    }


def keep_warm(*files: Path) -> None:
    """Read files, so that all of them lie in the page cache."""
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.read(1 << 20):
                pass


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def machine() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cores": os.cpu_count(),
        "cpu": _cpu(),
        "memory_gib": round(memory, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def commit() -> str:
    """Return the commit, with `-dirty` behind it where surgery/ or recipes/ differ from it."""
    head = _git("rev-parse", "HEAD")
    return f"{head}-dirty" if _git("status", "--porcelain", "surgery", "recipes") else head


def write_results(folder: Path, result: Mapping[str, Any], text: str) -> None:
    """Write results.json, and the same in words between the marks of the README.

    Args:
        folder: the benchmark's.
        result: whatever was found; `rounds`, `seed` and `runs` where something was timed.
        text: the table or tables.
    """
    command = f"python {Path(sys.argv[0]).resolve().relative_to(ROOT)}"
    when = datetime.now(UTC).isoformat(timespec="minutes")
    here = machine()
    count = result.get("rounds")
    rounds = f"{count} round{'s' if count > 1 else ''}; " if count else ""
    about = {"command": command, "date": when, "commit": commit(), "machine": here}
    (folder / "results.json").write_text(json.dumps({**about, **result}, indent=1) + "\n")
    said = (
        f"{here['cores']} cores ({here['cpu']}), {here['memory_gib']:.0f} GiB, {here['kernel']}, "
        f"Python {here['python']}, {', '.join(f'{p} {here[p]}' for p in PACKAGES)}; "
        f"commit {about['commit'][:7]}{about['commit'][40:]}; {rounds}{when}"
    )
    block = f"<!-- results -->\n{said}\n\n{text}\n<!-- end -->"
    readme = folder / "README.md"
    old = readme.read_text()
    readme.write_text(re.sub("<!-- results -->.*<!-- end -->", lambda _: block, old, flags=re.S))
    print(f"\n{said}\n\n{text}")


def child_environment(more: Mapping[str, str] | None) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **(more or {})}


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], check=False, cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout.strip() or ("unknown" if done.returncode else "")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor()
