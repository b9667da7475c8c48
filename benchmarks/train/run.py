"""What does an optimizer step of each recipe cost? See README.md.

Usage: python benchmarks/train/run.py [--rounds 20]

Writes results.json and the table in README.md.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from checkpoint import make_checkpoint
from measure import run_child, table, write_results

HERE = Path(__file__).parent.resolve()
OURS, PEER, FULL = "genieblue_skip", "peft genieblue_skip", "full_finetune"
REAL = "builtin/qwen2.5-0.5b"
SLOWER, OFF = 1.02, 0.05


def ratio(found: dict, name: str, other: str) -> float:
    """The median over rounds of the ratio of two steps of one round."""
    pairs = zip(found[name]["cpu"], found[other]["cpu"], strict=True)
    return statistics.median(a / b for a, b in pairs)


def describe(found: dict, sizes: dict, tokens: int) -> str:
    rows = []
    for name, figures in found.items():
        cpu = statistics.median(figures["cpu"])
        off = figures["measured"] / figures["predicted"] - 1
        rows.append(
            [
                name,
                f"{1e3 * cpu:.0f}",
                f"{tokens / figures['wall']:,.0f}",
                f"{ratio(found, name, FULL):.3f}",
                f"{figures['measured'] / 1e6:.1f}",
                f"{figures['predicted'] / 1e6:.1f}",
                f"{100 * off:+.2f} %",
                f"{figures['process_mb']:.0f}",
            ]
        )
    head = ["recipe", "step, CPU ms", "tokens/s", "to full", "MB", "predicted", "off", "process"]
    slower = ratio(found, OURS, PEER)
    both = (*found.values(), *sizes.values())
    worst = max(abs(f["measured"] / f["predicted"] - 1) for f in both)
    goals = [
        ["step beside the PEFT script", f"at most {SLOWER}", f"{slower:.3f}", slower <= SLOWER],
        ["memory beside the prediction", f"within {OFF:.0%}", f"{worst:.2%}", worst <= OFF],
    ]
    said = [[*cells, "met" if met else "missed"] for *cells, met in goals]
    goal = ["goal", "wanted", "found", ""]
    return f"{table(head, rows)}\n\n{describe_real(sizes)}\n\n{table(goal, said)}"


def describe_real(sizes: dict) -> str:
    rows = [
        [
            name,
            f"{f['measured'] / 1e6:,.0f}",
            f"{f['predicted'] / 1e6:,.0f}",
            f"{100 * (f['measured'] / f['predicted'] - 1):+.2f} %",
        ]
        for name, f in sizes.items()
    ]
    return table([f"{REAL}, fp32", "resident MB", "predicted MB", "off"], rows)


def real_sizes(names: list[str]) -> dict:
    """Resident bytes of each recipe on random weights of a real model's shape."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        make_checkpoint(REAL, model)
        runs = {n: run_child([sys.executable, HERE / "process.py", n, model]) for n in names}
    return {name: json.loads(run["stdout"].splitlines()[-1]) for name, run in runs.items()}


def run_case(*options: str) -> dict:
    return run_child([sys.executable, HERE / "case.py", *options])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the order of turns")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--dry", action="store_true", help="write no results")
    given = parser.parse_args()
    options = [f"--{k}={getattr(given, k)}" for k in ("seed", "rows", "tokens")]
    together = run_case(*options, f"--rounds={given.rounds}")
    found = json.loads(together["stdout"].splitlines()[-1])
    for name, figures in found.items():
        figures["process_mb"] = run_case(*options, "--rounds=1", f"--only={name}")["peak_mb"]
    sizes = real_sizes(list(found))
    text = describe(found, sizes, given.rows * given.tokens)
    about = {"rounds": given.rounds, "seed": given.seed, "shape": [given.rows, given.tokens]}
    print(text) if given.dry else write_results(
        HERE, {**about, "cases": found, "real": sizes}, text
    )


if __name__ == "__main__":
    main()
