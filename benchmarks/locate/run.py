"""How long does it take to locate the blocks of every decoder, and to plan? See README.md.

    python benchmarks/locate/run.py [--rounds 1] [--dry]

Lets the conformance suite locate and plan every type of `AutoModelForCausalLM` from a config alone,
in turns with transformers that only builds the same models. Writes results.json and the table in
README.md.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from measure import ROOT, Run, median_of, medians, run_child, table, take_turns, write_results

HERE = Path(__file__).parent.resolve()
ENV = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
TYPES = "from support.model_types import causal_types; print(*causal_types(), sep=',')"
OURS, PEER = "`surgery`, locate and plan", "transformers, build on the meta device"
GOAL = 240.0
"""Seconds."""


def locate(types: str, processes: int, found: dict) -> Run:
    """Run the suite with no operation; keep what it says of each type."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["--types", types, "--operations", "", "--processes", processes, "--out", folder]
        run = run_child([sys.executable, "-m", "support.run", *map(str, options)], ENV)
        found |= json.loads((Path(folder) / "support.json").read_text())["types"]
    return run


def build(types: str, processes: int, failed: list[str]) -> Run:
    """Build each model once without its weights, and do nothing with it."""
    run = run_child([sys.executable, HERE / "peer.py", types, str(processes)], ENV)
    failed[:] = json.loads(run["stdout"].splitlines()[-1])
    return run


def describe(runs: dict, found: Mapping[str, dict], failed: list[str]) -> str:
    head = ["method", "median s", "min s", "max s", "CPU s", "peak MB"]
    rows = []
    for name, done in runs.items():
        seconds = [run["seconds"] for run in done]
        middle = (median_of(done), min(seconds), max(seconds), median_of(done, "cpu_seconds"))
        peak = max(run["peak_mb"] for run in done)
        rows.append([name, *(f"{value:.0f}" for value in middle), f"{peak:.0f}"])
    located = [name for name, row in found.items() if row["blocks"]]
    met = "met" if median_of(runs[OURS]) <= GOAL else "missed"
    reasons = [[name, row["reason"]] for name, row in found.items() if name not in located]
    said = (
        f"{len(located)} of {len(found)} types located and planned (the goal of {GOAL:.0f} s is "
        f"{met}). transformers cannot build {len(failed)} of their default configs: "
        f"{', '.join(failed)}; `surgery` gets a tiny config there."
    )
    return f"{table(head, rows)}\n\n{said}\n\n{table(['not located', 'reason'], reasons)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the order of turns")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--types", help="some types, by commas; all unless given")
    parser.add_argument("--dry", action="store_true", help="write no results")
    given = parser.parse_args()
    types = given.types or run_child([sys.executable, "-c", TYPES], ENV)["stdout"].strip()
    found: dict[str, dict] = {}
    failed: list[str] = []
    methods = {
        OURS: partial(locate, types, given.processes, found),
        PEER: partial(build, types, given.processes, failed),
    }
    runs = take_turns(methods, given.rounds, given.seed)
    text = describe(runs, found, failed)
    about = {"rounds": given.rounds, "seed": given.seed, "processes": given.processes}
    kept = {name: {key: row[key] for key in ("blocks", "reason")} for name, row in found.items()}
    result = {**about, "types": kept, "not_built": failed, "medians": medians(runs), "runs": runs}
    print(text) if given.dry else write_results(HERE, result, text)


if __name__ == "__main__":
    main()
