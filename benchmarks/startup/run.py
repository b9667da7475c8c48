"""How long until the command line answers? See README.md.

Usage: python benchmarks/startup/run.py [--rounds 5]

Runs `surgery --help` and `surgery plan` as whole commands, in turns with the same counts made by
transformers and peft on the meta device. Writes results.json and the table in README.md.
"""

import argparse
import json
import re
import shutil
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from measure import (
    ROOT,
    SURGERY,
    Run,
    heavy_imports,
    median_of,
    medians,
    run_child,
    table,
    take_turns,
    write_results,
)

HERE = Path(__file__).parent.resolve()
WORK = HERE / "work"
KEPT = {"SURGERY_CACHE": str(WORK / "kept")}
NEW = {"SURGERY_CACHE": str(WORK / "new")}
SHAPES = ("qwen2.5-3b", "llama-3.1-70b")
HELP, BARE, IMPORT = "surgery --help", "python -c pass", "python -c 'import peft, transformers'"
GOALS = {HELP: 0.4, **{f"surgery plan, {shape}": 1.0 for shape in SHAPES}}


def plan(shape: str) -> list[str]:
    return ["plan", "genieblue_skip", f"model=builtin/{shape}"]


def first_time(shape: str) -> Run:
    shutil.rmtree(WORK / "new", ignore_errors=True)
    return run_child([*SURGERY, *plan(shape)], NEW)


def methods() -> dict:
    """Each thing to run, by its name in the table."""
    peer = [sys.executable, HERE / "peer.py"]
    found = {
        BARE: partial(run_child, [sys.executable, "-c", "pass"]),
        HELP: partial(run_child, [*SURGERY, "--help"]),
        IMPORT: partial(run_child, [sys.executable, "-c", "import peft, transformers"]),
    }
    for shape in SHAPES:
        folder = ROOT / "surgery" / "model" / "builtin" / shape
        found[f"surgery plan, {shape}"] = partial(run_child, [*SURGERY, *plan(shape)], KEPT)
        found[f"surgery plan, {shape}, first time"] = partial(first_time, shape)
        found[f"transformers + peft, {shape}"] = partial(run_child, [*peer, folder])
    return found


def check(shape: str) -> dict:
    """Return what both sides count and what the command imports, after seeing that all is well."""
    folder = ROOT / "surgery" / "model" / "builtin" / shape
    ours = run_child([*SURGERY, *plan(shape), "--format", "json"], KEPT)["stdout"]
    theirs = run_child([sys.executable, HERE / "peer.py", folder])["stdout"]
    trainable = json.loads(ours)["parameters"]["trainable"]
    peer = int(re.search(r"trainable params: ([\d,]+)", theirs)[1].replace(",", ""))
    assert trainable == peer, (shape, trainable, peer)
    imported = heavy_imports(*plan(shape), env=KEPT)
    assert not imported, imported
    return {"trainable": trainable, "imported": imported}


def modules_imported(*arguments: str) -> int:
    """Count the modules that `python -X importtime` lists for a command; torch is none of them."""
    command = [sys.executable, "-X", "importtime", "-m", "surgery", *arguments]
    lines = run_child(command, KEPT)["stderr"].splitlines()
    names = [line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")]
    assert not {"torch", "transformers", "peft"} & set(names), arguments
    return len(names)


def ratios_of(runs: dict) -> dict[str, float]:
    found = {}
    for shape in SHAPES:
        ours, peer = runs[f"surgery plan, {shape}"], runs[f"transformers + peft, {shape}"]
        found[f"{shape}, times faster"] = median_of(peer) / median_of(ours)
        found[f"{shape}, times less memory"] = median_of(peer, "peak_mb") / median_of(
            ours, "peak_mb"
        )
    return {name: round(value, 2) for name, value in found.items()}


def row(name: str, runs: list[Run]) -> list[str]:
    seconds = [run["seconds"] for run in runs]
    goal = GOALS.get(name)
    met = "met" if goal and median_of(runs) <= goal else "missed"
    return [
        f"`{name}`",
        *(f"{value:.2f}" for value in (median_of(runs), min(seconds), max(seconds))),
        f"{median_of(runs, 'cpu_seconds'):.2f}",
        f"{max(run['peak_mb'] for run in runs):.0f}",
        f"{goal} s: {met}" if goal else "",
    ]


def describe(runs: dict, checks: dict, modules: dict) -> str:
    head = ["command", "median s", "min s", "max s", "CPU s", "peak MB", "goal"]
    rows = [row(name, done) for name, done in runs.items()]
    ratios = [[name, f"{value:.1f}"] for name, value in ratios_of(runs).items()]
    same = "; ".join(f"{shape}: {found['trainable']:,}" for shape, found in checks.items())
    said = (
        f"Both sides count the same trainable parameters ({same}). `python -X importtime` lists "
        + ", ".join(f"{count} modules for `{name}`" for name, count in modules.items())
        + "; torch, transformers and peft are not among them."
    )
    return f"{table(head, rows)}\n\n{table(['ratio of medians', ''], ratios)}\n\n{said}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the order of turns")
    parser.add_argument("--dry", action="store_true", help="write no results")
    given = parser.parse_args()
    try:
        for shape in SHAPES:
            run_child([*SURGERY, *plan(shape)], KEPT)
        checks = {shape: check(shape) for shape in SHAPES}
        modules = {"surgery --help": modules_imported("--help")}
        modules["surgery plan"] = modules_imported(*plan(SHAPES[0]))
        runs = take_turns(methods(), given.rounds, given.seed)
        text = describe(runs, checks, modules)
        about = {"rounds": given.rounds, "seed": given.seed, "checks": checks, "modules": modules}
        result = {**about, "ratios": ratios_of(runs), "medians": medians(runs), "runs": runs}
        print(text) if given.dry else write_results(HERE, result, text)
    finally:
        shutil.rmtree(WORK, ignore_errors=True)


if __name__ == "__main__":
    main()
