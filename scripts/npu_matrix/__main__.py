"""Ask Qualcomm's compiler about every case, and write docs/reference/npu-matrix.md."""

import argparse
import datetime
import sys
from pathlib import Path

from npu_matrix.ask import ARCH, SOC, rows
from npu_matrix.page import page
from npu_matrix.table import groups
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.npu.qualcomm.toolchain import toolchain

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "npu-matrix.md"


def main() -> int:
    """Return 0 where the compiler says what is expected of every case, 1 where it doesn't."""
    words = argparse.ArgumentParser(prog="npu_matrix", description=__doc__)
    words.add_argument("--out", type=Path, default=PAGE, help="the page to write")
    words.add_argument("--soc", type=int, default=SOC, help="number of the chip")
    words.add_argument("--arch", type=int, default=ARCH, help="version of its instruction set")
    asked = words.parse_args()
    tools = toolchain()
    cases = groups()
    every = [case for group in cases.values() for case in group]
    answers = iter(rows(every, asked.soc, asked.arch))
    found = {about: [next(answers) for _ in group] for about, group in cases.items()}
    chip = f"chip {asked.soc}, architecture V{asked.arch}"
    text = page(found, f"{tools}, {chip}, {datetime.date.today()}")
    asked.out.write_text(text, encoding="utf-8")
    others = [row for group in found.values() for row in group if row.found != row.case.expected]
    for row in others:
        print(f"{row.case.name}: expected {row.case.expected}, found {row.found} {row.reason}")
    print(f"{asked.out.name}: {len(every)} cases, {len(others)} not as expected")
    return 1 if others else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SurgeryError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
