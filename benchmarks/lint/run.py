"""How long does lint take, at each level? See README.md.

    python benchmarks/lint/run.py [--dry]

Writes results.json and the table in README.md.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from measure import ROOT, SURGERY, table, write_results

HERE = Path(__file__).parent.resolve()
REAL = "model=builtin/qwen2.5-3b"
POLL = 0.2
"""Seconds between two looks at the memory."""
CASES = {
    "one recipe": (["genieblue_skip"], 1.0, None),
    "all packaged recipes": ([], 2.0, None),
    "`--graph`, Qwen2.5-3B's shape": (["genieblue_skip", REAL, "--graph"], 30.0, 2e9),
    "`--prove`, Qwen2.5-3B's width": (["genieblue_skip", REAL, "--prove"], 180.0, 4e9),
    "`--prove` again": (["genieblue_skip", REAL, "--prove"], None, None),
}
"""What is run, and the most seconds and bytes that it may take."""


def watched(words: list[str], cache: str) -> dict:
    """Run lint; return its seconds and the most memory that all its processes held at once."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "SURGERY_CACHE": cache}
    most, ended = [0], threading.Event()
    started = time.perf_counter()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    child = subprocess.Popen([*SURGERY, "lint", *words], env=env, **quiet)

    def look() -> None:
        while not ended.wait(POLL):
            most[0] = max(most[0], sum(private_bytes(p) for p in family(child.pid)))

    looking = threading.Thread(target=look)
    looking.start()
    code = child.wait()
    seconds = time.perf_counter() - started
    ended.set()
    looking.join()
    if code not in (0, 1):
        raise RuntimeError(f"surgery lint {' '.join(words)} ended with {code}")
    return {"seconds": seconds, "peak_bytes": most[0]}


def family(pid: int) -> list[int]:
    """A process and all that it started, as far as they still are."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        text = " ".join((task / "children").read_text() for task in tasks)
    except OSError:
        return []
    return [pid, *(p for child in text.split() for p in family(int(child)))]


def private_bytes(pid: int) -> int:
    """Proportional share of memory: what several processes map is counted once."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0
    return int(text.partition("\nPss:")[2].split()[0]) * 1024 if "\nPss:" in text else 0


def describe(found: dict) -> str:
    rows = []
    for name, (_, seconds, memory) in CASES.items():
        run = found[name]
        late = seconds is not None and run["seconds"] > seconds
        large = memory is not None and run["peak_bytes"] > memory
        wanted = f"{seconds:.0f} s" if seconds else "-"
        wanted += f", {memory / 1e9:.0f} GB" if memory else ""
        met = "missed" if late or large else "met" if seconds else ""
        rows.append([name, f"{run['seconds']:.1f}", f"{run['peak_bytes'] / 1e9:.2f}", wanted, met])
    return table(["what", "seconds", "peak GB", "wanted", ""], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry", action="store_true", help="write no results")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        for name in ("one recipe", "all packaged recipes"):
            watched(CASES[name][0], cache)  # what the anatomies cost is not the question
        watched(["genieblue_skip", REAL], cache)
        found = {name: watched(words, cache) for name, (words, _, _) in CASES.items()}
    text = describe(found)
    print(text) if given.dry else write_results(HERE, {"cases": found}, text)


if __name__ == "__main__":
    main()
