"""How long does it take to make a checkpoint deeper, and how much memory? See README.md.

    python benchmarks/depth/run.py [--rounds 3] [--mergekit PYTHON] [--dry]

Makes a checkpoint of Qwen2.5-3B's shape (6.2 GB of random weights) under work/, writes it with 45
blocks instead of 36 with `surgery apply`, with mergekit and with transformers, and the same bytes
with cp and dd, in turns. Writes results.json and the table in README.md, and removes work/.
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
from measure import (
    SURGERY,
    Run,
    heavy_imports,
    keep_warm,
    median_of,
    medians,
    run_child,
    table,
    take_turns,
    write_results,
)
from passthrough import add_option, find_mergekit, passthrough, versions

HERE = Path(__file__).parent.resolve()
WORK = HERE / "work"
SOURCE, SAME, OUT = WORK / "source", WORK / "same.bin", WORK / "out"
MODEL, BLOCKS = "builtin/qwen2.5-3b", 36
COPIED = range(3, BLOCKS, 4)
ORDER = sorted([*range(BLOCKS), *COPIED])
RANGES = list(zip([0, *COPIED], [*(i + 1 for i in COPIED), BLOCKS], strict=True))
CACHE = {"SURGERY_CACHE": str(WORK / "cache")}
ARGUMENTS = ["apply", str(HERE / "deeper.yaml"), f"model={SOURCE}", "--out", str(OUT)]
OURS, FIRST = "surgery apply", "surgery apply, first time"
MERGEKIT, PEER = "mergekit passthrough", "transformers, by hand"
CP, DIRECT = "cp", "dd oflag=direct bs=16M"
CODES = {MERGEKIT: {0, 1}}  # it ends with 1 where it writes no config.json, the weights written


def commands(python: Path) -> dict[str, list]:
    """Each method's command, by its name in the table."""
    return {
        OURS: [*SURGERY, *ARGUMENTS],
        FIRST: [*SURGERY, *ARGUMENTS],
        MERGEKIT: passthrough(python, SOURCE, RANGES, "bfloat16", OUT),
        PEER: [sys.executable, HERE / "peer.py", SOURCE, OUT],
        CP: ["cp", SAME, OUT],
        DIRECT: ["dd", f"if={SAME}", f"of={OUT}", "bs=16M", "oflag=direct"],
    }


def run_once(method: str, command: list) -> Run:
    """Run one method as a process of its own, its output gone and its source in the page cache."""
    remove_output()
    if method == FIRST:
        shutil.rmtree(WORK / "cache", ignore_errors=True)
    os.sync()
    keep_warm(*([SAME] if str(SAME) in " ".join(map(str, command)) else weights(SOURCE)))
    run = run_child(command, CACHE, codes=CODES.get(method, {0}))
    written = weights(OUT) if OUT.is_dir() else [OUT]
    assert abs(sum(file.stat().st_size for file in written) - SAME.stat().st_size) < 1 << 20
    return {**run, "on_disk": run["seconds"] + seconds_of_sync(written)}


def seconds_of_sync(files: list[Path]) -> float:
    """Bring files to the disk; return how long that took."""
    started = time.perf_counter()
    for file in files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
    return time.perf_counter() - started


def remove_output() -> None:
    if OUT.is_dir():
        shutil.rmtree(OUT)
    OUT.unlink(missing_ok=True)


def weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def prepare(methods: dict[str, list]) -> dict:
    """Make the checkpoint; look at what each contender writes; keep the bytes of ours."""
    make_checkpoint(MODEL, SOURCE)
    found = {}
    for name in (MERGEKIT, PEER, OURS):
        remove_output()
        code = run_child(methods[name], CACHE, codes=CODES.get(name, {0}))["code"]
        look = run_child([sys.executable, HERE / "look.py", SOURCE, OUT, json.dumps(ORDER)])
        found[name] = {"exit_code": code, **json.loads(look["stdout"])}
        print(name, found[name], flush=True)
    # by a process of its own: what this one holds counts into the peak of all that it starts
    run_child(["sh", "-c", f"cat '{OUT}'/*.safetensors > '{SAME}'"])
    remove_output()
    imported = heavy_imports(*ARGUMENTS, env=CACHE)
    assert not imported, f"surgery apply imported {imported}"
    return found


def ratios_of(runs: dict) -> dict[str, float]:
    """Medians of the peers over ours, and ours over those of plain copies."""
    middle = {
        key: {name: median_of(done, key) for name, done in runs.items()}
        for key in ("seconds", "on_disk", "peak_mb")
    }
    words = {
        "seconds": "times faster than {}",
        "on_disk": "times faster than {}, both until all is on the disk",
        "peak_mb": "times less memory than {}",
    }
    found = {
        said.format(peer): middle[key][peer] / middle[key][OURS]
        for key, said in words.items()
        for peer in (MERGEKIT, PEER)
    }
    for copy in (CP, DIRECT):
        found[f"seconds over {copy}"] = middle["seconds"][OURS] / middle["seconds"][copy]
    found[f"seconds over {CP}, until all is on the disk"] = (
        middle["on_disk"][OURS] / middle["on_disk"][CP]
    )
    return {name: round(value, 3) for name, value in found.items()}


def goals_of(runs: dict) -> list[list[str]]:
    """Each goal, what was measured, and whether it is met."""
    ratios = ratios_of(runs)
    slowest = min(ratios[f"times faster than {name}"] for name in (MERGEKIT, PEER))
    peak = max(run["peak_mb"] for run in runs[OURS])
    direct = ratios[f"seconds over {DIRECT}"]
    found = [
        ("at least 4 times faster than either peer", f"{slowest:.2f}", slowest >= 4),
        ("under 150 MB", f"{peak:.0f}", peak < 150),
        ("within 1.3 times writing the same bytes directly", f"{direct:.2f}", direct <= 1.3),
    ]
    return [[goal, value, "met" if met else "missed"] for goal, value, met in found]


def row(method: str, runs: list[Run], size: int) -> list[str]:
    seconds = [run["seconds"] for run in runs]
    median = median_of(runs)
    return [
        method,
        *(f"{value:.2f}" for value in (median, min(seconds), max(seconds))),
        f"{median_of(runs, 'on_disk'):.2f}",
        f"{size / 1e9 / median:.2f}",
        f"{median_of(runs, 'cpu_seconds'):.1f}",
        f"{max(run['peak_mb'] for run in runs):.0f}",
    ]


def describe(runs: dict, looks: dict, size: int) -> str:
    head = ["method", "median s", "min s", "max s", "on disk s", "GB/s", "CPU s", "peak MB"]
    times = table(head, [row(name, done, size) for name, done in runs.items()])
    ratios = [[name, f"{value:.2f}"] for name, value in ratios_of(runs).items()]
    seen = [[name, *found.values()] for name, found in looks.items()]
    looked = ["contender", "exit code", "tensors, all equal bit for bit", "blocks run on reload"]
    return "\n\n".join(
        [
            f"{size:,} bytes written.",
            times,
            table(["ratio of medians", ""], ratios),
            table(["goal", "measured", ""], goals_of(runs)),
            table(looked, seen),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the order of turns")
    parser.add_argument("--dry", action="store_true", help="write no results")
    add_option(parser)
    given = parser.parse_args()
    python = find_mergekit(given.mergekit)
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir()
    try:
        every = commands(python)
        looks = prepare(every)
        methods = {name: partial(run_once, name, command) for name, command in every.items()}
        runs = take_turns(methods, given.rounds, given.seed)
        size = SAME.stat().st_size
        text = f"mergekit {versions(python)['mergekit']}. {describe(runs, looks, size)}"
        about = {"model": MODEL, "rounds": given.rounds, "seed": given.seed, "bytes": size}
        about |= {"mergekit": versions(python), "looks": looks, "ratios": ratios_of(runs)}
        result = {**about, "medians": medians(runs), "runs": runs}
        print(text) if given.dry else write_results(HERE, result, text)
    finally:
        shutil.rmtree(WORK, ignore_errors=True)


if __name__ == "__main__":
    main()
