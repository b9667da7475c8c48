"""Lint of ONNX files: what a proof decides, on which inputs, and how far numbers may be off."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml

from surgery.cli.views.lint.github import annotations
from surgery.cli.views.lint.json_document import lint_document
from surgery.cli.views.lint.sarif import sarif
from surgery.cli.views.lint.table import as_text
from surgery.lint.linter import Depth, lint_subject
from surgery.lint.onnx.live_nodes import live_graph
from surgery.lint.onnx.reader import read_onnx
from surgery.lint.proof_inputs import meaningful_inputs
from surgery.lint.subject import find_subjects
from surgery.npu.qualcomm.agreement import LEAST, agreement
from surgery.npu.qualcomm.toolchain import why_not
from surgery.npu.target import load_target

COMPILED = pytest.mark.skipif(bool(why_not()), reason=why_not() or "runs")
RELU = "g (float[2, 4] x) => (float[2, 4] y) { y = Relu(x) }"
DETECTOR = """
g (float[1, 1, 64, 64] x) => (float[1, 1, 4, 4] y) <float a = {12.0}, float b = {9.0}> {
  m = AveragePool <kernel_shape = [16, 16], strides = [16, 16]> (x)
  n = Mul(m, a) s = Sub(n, b) y = Sigmoid(s)
}
"""


def written(folder: Path, graph: str) -> Path:
    file = folder / "graph.onnx"
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 23]>\n{graph}')
    onnx.save(model, file)
    return file


def linted(file: Path, target: str = "snapdragon", **depth):
    return lint_subject(*find_subjects([str(file)]), [load_target(target)], Depth(**depth))[0]


def without_relu(folder: Path) -> str:
    """A device whose table lacks what its compiler has."""
    fact = {
        "value": ["Relu"],
        "evidence": "table",
        "source": "a table of ours",
        "date": "2026-11-27",
    }
    content = {"like": "snapdragon-8-elite", "device": "a phone", "compiler": "htp"}
    known = load_target("snapdragon-8-elite")
    chip = {name: json.loads(getattr(known, name).model_dump_json()) for name in ("soc", "arch")}
    file = folder / "mine.yaml"
    file.write_text(yaml.safe_dump({**content, **chip, "operators": {"lacking": fact}}))
    return str(file)


def test_an_onnx_file_is_a_graph_and_no_recipe(tmp_path):
    for level in ("recipe", "graph"):
        report = linted(written(tmp_path, RELU), level=level)
        document = json.loads(lint_document([report], failed=False))
        assert document["reports"][0]["level"] == "graph"
    (tmp_path / "graph.onnx").write_bytes(b"no")
    assert linted(tmp_path / "graph.onnx").level == "graph"


def test_a_graph_that_could_not_be_proved_is_not_said_to_be(tmp_path):
    dynamic = "g (float[n, 4] x) => (float[n, 4] y) { y = Relu(x) }"
    report = linted(written(tmp_path, dynamic), level="prove", scheme="fp16")
    assert (report.level, report.verdict, report.proofs) == ("graph", "rejected", ())


@COMPILED
def test_a_proof_of_the_graph_overrules_a_table(tmp_path):
    file, target = written(tmp_path, RELU), without_relu(tmp_path)
    assert linted(file, target).verdict == "rejected"
    report = linted(file, target, level="prove", scheme="fp16")
    assert [proof.outcome for proof in report.proofs] == ["proved"]
    assert [found.severity for found in report.findings] == ["note"]
    assert report.verdict == "clean"
    assert not report.fails("error")
    assert "the compiler took this very graph" in report.findings[0].why
    assert report.findings[0].evidence == "proved"
    assert "1 note: clean" in as_text([report], overview=False)
    assert json.loads(lint_document([report], failed=False))["reports"][0]["verdict"] == "clean"
    assert json.loads(sarif([report]))["runs"][0]["results"][0]["level"] == "note"
    assert annotations([report]).startswith("::notice")


@COMPILED
def test_a_graph_that_takes_too_long_is_not_decided_and_the_next_scheme_is_tried(tmp_path):
    own = "g (float[3, 5] x) => (float[3, 5] y) { t = Tanh(x) y = Mul(t, x) }"
    report = linted(written(tmp_path, own), level="prove", seconds=0.01)
    assert [proof.outcome for proof in report.proofs] == ["undecided"] * 3
    assert {(f.code, f.severity) for f in report.findings} == {("L302", "warning")}
    assert all("is not decided" in found.what for found in report.findings)
    assert all("took more than 0.01 s" in found.why for found in report.findings)
    assert all("--timeout" in found.fix for found in report.findings)
    assert report.verdict == "warned"


@COMPILED
def test_a_detector_is_shown_a_picture(tmp_path):
    file = written(tmp_path, DETECTOR)
    feeds, *more = meaningful_inputs(file, live_graph(read_onnx(file)).inputs, 3)
    assert -1 <= feeds["x"].min() < -0.5 < 0.5 < feeds["x"].max() <= 1
    assert len(more) == 2
    assert not np.array_equal(feeds["x"], more[0]["x"])
    again = meaningful_inputs(file, live_graph(read_onnx(file)).inputs, 1)
    assert np.array_equal(feeds["x"], again[0]["x"])


@COMPILED
def test_whole_inputs_are_such_as_the_graph_takes(tmp_path):
    table = "float[2, 4] w = {1, 2, 3, 4, 5, 6, 7, 8}"
    small = f"g (int64[1, 6] ids) => (float[1, 6, 4] y) <{table}> {{ y = Gather(w, ids) }}"
    file = written(tmp_path, small)
    assert meaningful_inputs(file, live_graph(read_onnx(file)).inputs, 1)[0]["ids"].max() <= 1
    free = "g (int64[1, 6] ids, int64[1, 6] mask) => (int64[1, 6] y) { y = Add(ids, mask) }"
    file = written(tmp_path, free)
    feeds = meaningful_inputs(file, live_graph(read_onnx(file)).inputs, 1)[0]
    assert feeds["ids"].max() > 1 >= feeds["mask"].max()


def test_stored_inputs_keep_their_numbers(tmp_path):
    model = onnx.parser.parse_model(
        '<ir_version: 3, opset_import: ["" : 8]> g (float[2] x, float[2] w) => (float[2] y) '
        "<float[2] w = {1, 2}> { y = Mul(x, w) }"
    )
    onnx.save(model, tmp_path / "old.onnx")
    graph = live_graph(read_onnx(tmp_path / "old.onnx"))
    assert [value.name for value in graph.inputs] == ["x"]


def agreed(found, wanted):
    one = agreement({"y": np.array(found, np.float32)}, {"y": np.array(wanted, np.float32)})["y"]
    return one.is_enough, one.is_near


def test_what_lies_below_fp16_is_no_error():
    assert agreed([0.0, 0.0, 0.0], [5e-5, 1e-6, 2e-5]) == (True, True)
    assert agreed([0.0, 0.0, 0.0], [5e-4, 1e-6, 2e-5]) == (False, False)
    silent = agreement({"y": np.zeros(3)}, {"y": np.full(3, LEAST / 2)})["y"]
    assert silent.is_inconclusive
    assert not agreement({"y": np.zeros(3)}, {"y": np.ones(3)})["y"].is_inconclusive


def test_numbers_are_judged_by_error_beside_the_range():
    wanted = np.sin(np.arange(1000))
    spread = np.cos(np.arange(1000) * 1.7)
    assert agreed(wanted + 0.008 * spread, wanted) == (True, True)  # 0.4 %, cosine 0.99994
    assert agreed(wanted + 0.02 * spread, wanted) == (True, True)  # 1 %, cosine 0.9996
    assert agreed(wanted + 0.08 * spread, wanted) == (False, True)  # 4 %, cosine 0.994
    assert agreed(wanted + 0.3 * spread, wanted) == (False, False)
    one_off = wanted + 0.8 * (np.arange(1000) == 3)  # cosine 0.9994, 40 % of the range
    assert agreed(one_off, wanted) == (False, False)


def test_one_number_has_a_range_too():
    assert agreed([100.0], [100.1]) == (True, True)
    assert agreed([100.0], [10.0])[0] is False


@COMPILED
def test_outputs_of_which_nothing_can_be_seen_are_said_to_show_nothing(tmp_path):
    faint = "g (float[2, 4] x) => (float[2, 4] y) <float s = {0.000001}> { y = Mul(x, s) }"
    report = linted(written(tmp_path, faint), level="prove", scheme="fp16")
    assert [(f.code, f.severity) for f in report.findings] == [("L301", "note")]
    assert "its outputs show nothing" in report.findings[0].what
    assert report.verdict == "clean"


@COMPILED
def test_wrong_numbers_are_an_error_all_the_same(tmp_path):
    square = """
    g (float[2, 64] x) => (float[2, 64] y) <float s = {300.0}> {
      t = Mul(x, s) u = Mul(t, t) v = Mul(u, t) r = Div(v, u) y = Div(r, s)
    }
    """
    report = linted(written(tmp_path, square), level="prove", scheme="fp16")
    assert report.verdict == "rejected"
    assert {f.code for f in report.findings if f.severity == "error"} == {"L301"}
