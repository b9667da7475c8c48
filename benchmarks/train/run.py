"""What does an optimizer step of each recipe cost? See README.md.

Usage: python benchmarks/train/run.py [--rounds 20]

Writes results.json and the table in README.md.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from measure import run_child, table, write_results

HERE = Path(__file__).parent.resolve()
OURS, PEER, FULL = "genieblue_skip", "peft genieblue_skip", "full_finetune"
SLOWER, OFF = 1.02, 0.05


def ratio(found: dict, name: str, other: str) -> float:
    """The median over rounds of the ratio of two steps of one round."""
    pairs = zip(found[name]["cpu"], found[other]["cpu"], strict=True)
    return statistics.median(a / b for a, b in pairs)


def describe(found: dict, tokens: int) -> str:
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
            ]
        )
    head = ["recipe", "step, CPU ms", "tokens/s", "to full", "MB", "predicted MB", "off"]
    slower = ratio(found, OURS, PEER)
    worst = max(abs(f["measured"] / f["predicted"] - 1) for f in found.values())
    goals = [
        ["step beside the PEFT script", f"at most {SLOWER}", f"{slower:.3f}", slower <= SLOWER],
        ["memory beside the prediction", f"within {OFF:.0%}", f"{worst:.2%}", worst <= OFF],
    ]
    said = [[*cells, "met" if met else "missed"] for *cells, met in goals]
    return f"{table(head, rows)}\n\n{table(['goal', 'wanted', 'found', ''], said)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the order of turns")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--dry", action="store_true", help="write no results")
    given = parser.parse_args()
    options = [f"--{k}={getattr(given, k)}" for k in ("rounds", "seed", "rows", "tokens")]
    run = run_child([sys.executable, HERE / "case.py", *options])
    found = json.loads(run["stdout"].splitlines()[-1])
    text = describe(found, given.rows * given.tokens)
    about = {"rounds": given.rounds, "seed": given.seed, "shape": [given.rows, given.tokens]}
    print(text) if given.dry else write_results(HERE, {**about, "cases": found}, text)


if __name__ == "__main__":
    main()
