"""Qualcomm's compiler says of every small graph what it said when it was last looked at."""

import sys
from pathlib import Path

import onnx
import pytest

from surgery.npu.qualcomm.toolchain import why_not

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "scripts"))

from npu_matrix.ask import errors_in, rows  # noqa: E402
from npu_matrix.page import page  # noqa: E402
from npu_matrix.table import groups  # noqa: E402

CASES = [case for group in groups().values() for case in group]
PAGE = ROOT / "docs" / "reference" / "npu-matrix.md"


def test_names_are_told_apart():
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_page_has_the_case_as_it_is_known(case):
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    found = [line.split(" | ") for line in lines if line.startswith(f"| {case.name} | ")]
    assert [(cells[1], cells[2]) for cells in found] == [(case.operator, case.expected)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rules_say_what_the_compiler_does(case, tmp_path):
    onnx.save(case.model(), tmp_path / "case.onnx")
    assert bool(errors_in(tmp_path / "case.onnx")) == (case.expected != "accepted")


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "runs")
def test_compiler_and_table_agree():
    found = rows(CASES)
    others = {row.case.name: (row.case.expected, row.found, row.reason) for row in found}
    assert {name: said for name, said in others.items() if said[0] != said[1]} == {}
    assert all(row.reason for row in found if row.found == "rejected")
    assert page({"All": found}, "run").count("\n| ") == len(CASES) + 1
