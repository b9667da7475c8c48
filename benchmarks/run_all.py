"""Run every benchmark, one after the other: python benchmarks/run_all.py [NAME]..."""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> int:
    names = sys.argv[1:] or sorted(run.parent.name for run in HERE.glob("*/run.py"))
    failed = []
    for name in names:
        print(f"== benchmarks/{name}", flush=True)
        command = [sys.executable, str(HERE / name / "run.py")]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else f"done: {', '.join(names)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
