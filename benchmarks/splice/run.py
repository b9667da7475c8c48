"""How near to the disk's speed is the splice? See README.md.

Usage: python benchmarks/splice/run.py [--rounds 5] [--chunk MiB] [--writers N]

Makes a checkpoint of Qwen2.5-3B's shape (6.2 GB of random weights) under work/, writes nine of its
blocks (1.39 GB) with `surgery`, with dd and with cp, in turns, and writes results.json and
the table in README.md. Removes work/ after itself.
"""

import argparse
import json
import os
import shutil
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from checkpoint import make_checkpoint
from measure import Run, keep_warm, median_of, medians, run_child, table, take_turns, write_results

HERE = Path(__file__).parent.resolve()
WORK = HERE / "work"
SOURCE, SAME, OUT = WORK / "source", WORK / "same.safetensors", WORK / "out.safetensors"
COPIED = {f"model.layers.{i}." for i in range(3, 36, 4)}
DIRECT = "dd oflag=direct bs=16M"
PEERS = {
    DIRECT: ["dd", f"if={SAME}", f"of={OUT}", "bs=16M", "oflag=direct"],
    "cp": ["cp", str(SAME), str(OUT)],
    "cp, then sync of the file": ["sh", "-c", f"cp '{SAME}' '{OUT}' && sync '{OUT}'"],
}
SPLICE = "surgery.splice"


def splice(out: Path, chunk: int | None, writers: int | None) -> None:
    """Do the job once in this process; print its seconds."""
    started = time.perf_counter()
    from surgery.storage.safetensors import direct_write as transfer
    from surgery.storage.safetensors.checkpoint import read_checkpoint
    from surgery.storage.safetensors.writer import NewTensor, write_safetensors

    transfer.CHUNK_BYTES = (chunk << 20) if chunk else transfer.CHUNK_BYTES
    transfer.WRITERS = writers or transfer.WRITERS
    new = [
        NewTensor(f"copy.{name}", tensor.dtype, tensor.shape, tensor)
        for name, tensor in read_checkpoint(SOURCE).tensors.items()
        if any(name.startswith(block) for block in COPIED)
    ]
    write_safetensors(out, new)
    print(json.dumps({"inside": time.perf_counter() - started}))


def run_once(method: str, cold: bool, tuning: list[str]) -> Run:
    """Run one method as a process of its own, its output file gone and its source warm or cold."""
    OUT.unlink(missing_ok=True)
    os.sync()
    for file in [SAME, *SOURCE.glob("*.safetensors")]:
        settle(file, cold)
    run = run_child(PEERS.get(method, [sys.executable, __file__, "--once", *tuning]))
    assert OUT.stat().st_size == SAME.stat().st_size
    return {**run, **(json.loads(run["stdout"]) if method == SPLICE else {})}


def settle(file: Path, cold: bool) -> None:
    """Put a source file into the page cache, or out of it."""
    if not cold:
        return keep_warm(file)
    with file.open("rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(rounds: int, seed: int, tuning: list[str]) -> dict[str, dict[str, list[Run]]]:
    runs = {}
    for state in ("warm", "cold"):
        print(state, flush=True)
        methods = {
            name: partial(run_once, name, state == "cold", tuning) for name in (SPLICE, *PEERS)
        }
        runs[state] = take_turns(methods, rounds, seed)
    return runs


def describe(runs: dict, size: int) -> str:
    head = ["source", "method", "median s", "min s", "max s", "GB/s", "x dd", "peak MB"]
    rows = []
    for state, methods in runs.items():
        dd = median_of(methods[DIRECT])
        for method, done in methods.items():
            seconds = [run["seconds"] for run in done]
            median = median_of(done)
            rows.append(
                [
                    state,
                    method,
                    *(f"{value:.2f}" for value in (median, min(seconds), max(seconds))),
                    f"{size / 1e9 / median:.2f}",
                    f"{median / dd:.2f}",
                    f"{max(run['peak_mb'] for run in done):.0f}" if method == SPLICE else "",
                ]
            )
    return f"{size:,} bytes.\n\n{table(head, rows)}"


def prepare() -> None:
    """Make the source, and the file that the peers copy."""
    shutil.rmtree(WORK, ignore_errors=True)
    make_checkpoint("builtin/qwen2.5-3b", SOURCE)
    run_child([sys.executable, __file__, "--once"])
    OUT.rename(SAME)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the order of turns")
    parser.add_argument("--chunk", type=int, help="MiB; try another size, and write no results")
    parser.add_argument("--writers", type=int, help="threads; likewise")
    parser.add_argument("--keep", action="store_true", help="leave work/ for the next run")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.once:
        return splice(OUT, given.chunk, given.writers)
    tuning = [f"--{k}={v}" for k in ("chunk", "writers") if (v := getattr(given, k))]
    try:
        if not SAME.exists():
            prepare()
        runs = measure(given.rounds, given.seed, tuning)
        size = SAME.stat().st_size
        text = describe(runs, size)
        about = {"rounds": given.rounds, "seed": given.seed, "bytes": size}
        middle = {state: medians(methods) for state, methods in runs.items()}
        result = {**about, "medians": middle, "runs": runs}
        print(text) if tuning else write_results(HERE, result, text)
    finally:
        if not given.keep:
            shutil.rmtree(WORK, ignore_errors=True)


if __name__ == "__main__":
    main()
