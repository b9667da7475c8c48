"""Does the text path cost anything over the untouched base? See README.md.

Usage: python benchmarks/text_path/run.py [--rounds 5] [--scale 1]

Each case is a process of its own. In it the untouched base, a second base, the applied model on its
text path, and a plain PEFT model with its adapter disabled share one set of weights and take turns.
Writes results.json and the table in README.md.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from measure import run_child, table, write_results

HERE = Path(__file__).parent.resolve()
CASES = ("tiny float32", "tiny bfloat16", "wide float32", "wide bfloat16")
BASE, AGAIN, TEXT, PEFT = "base", "base again", "text_path", "peft disable_adapter()"
WORK = {"prefill": "prefill of 256 tokens", "decode": "one token", "generate": "generate 16 tokens"}
GOAL = 1.02


def run_case(case: str, given: argparse.Namespace) -> dict:
    options = [f"--rounds={given.rounds}", f"--scale={given.scale}", f"--seed={given.seed}"]
    run = run_child([sys.executable, HERE / "case.py", *case.split(), *options])
    print(f"{case}: {run['seconds']:.0f} s", flush=True)
    return json.loads(run["stdout"].splitlines()[-1])


def rows_of(case: str, found: dict) -> list[list[str]]:
    rows = []
    for work, contenders in found["work"].items():
        cells = [case, WORK[work], f"{contenders[BASE]['cpu']['milliseconds']:.2f}"]
        for name in (AGAIN, TEXT, PEFT):
            cpu, wall = contenders[name]["cpu"], contenders[name]["wall"]
            low, high = min(cpu["rounds"]), max(cpu["rounds"])
            cells.append(f"{cpu['ratio']:.3f} ({low:.3f}–{high:.3f}), {wall['ratio']:.3f}")
        rows.append([*cells, "met" if contenders[TEXT]["cpu"]["ratio"] <= GOAL else "missed"])
    return rows


def describe(results: dict) -> str:
    head = ["model", "work", "base, ms", AGAIN, TEXT, PEFT, f"at most {GOAL}"]
    rows = [row for case, found in results.items() for row in rows_of(case, found)]
    entering = [
        [case, *(f"{found['entering'][name]:.0f}" for name in (TEXT, PEFT))]
        for case, found in results.items()
    ]
    other = table(["µs to enter and leave", TEXT, PEFT], entering)
    return f"{table(head, rows)}\n\n{other}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1, help="of the number of calls")
    parser.add_argument("--seed", type=int, default=0, help="of the order of turns, the tokens")
    parser.add_argument("--case", action="append", choices=CASES, help="only this one")
    parser.add_argument("--dry", action="store_true", help="write no results")
    given = parser.parse_args()
    results = {case: run_case(case, given) for case in given.case or CASES}
    text = describe(results)
    about = {"rounds": given.rounds, "seed": given.seed, "scale": given.scale}
    print(text) if given.dry else write_results(HERE, {**about, "cases": results}, text)


if __name__ == "__main__":
    main()
