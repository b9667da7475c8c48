"""`surgery lint --graph` and `--prove` as typed, on recipes and ONNX files, with real verdicts."""

import json
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from surgery.cli import main
from surgery.npu.qualcomm import toolchain
from surgery.npu.qualcomm.toolchain import why_not

proved = pytest.mark.skipif(bool(why_not()), reason=why_not() or "runs")
HEAD = '<ir_version: 10, opset_import: ["" : 23]> g'
GRAPHS = {
    "sound": "(float[1,16,64] x) => (float[1,16,64] y) { y = RMSNormalization(x, w) }",
    "nonzero": "(float[8,64] x) => (int64[2,n] y) { a = Mul(x, w) y = NonZero(a) }",
    "narrow": "(float[1,4,16,32] x) => (float[1,4,16,32] y) { y = RMSNormalization(x, v) }",
    "norm": "(float[1,16,64] x) => (float[1,16,64] y) <float two = {2}, float eps = {0.000001}, "
    "int64[1] last = {-1}> { p = Pow(x, two) m = ReduceMean(p, last) e = Add(m, eps) r = Sqrt(e) "
    "i = Reciprocal(r) n = Mul(x, i) y = Mul(w, n) }",
    "dynamic": "(float[n,64] x) => (float[n,64] y) { y = Mul(x, w) }",
    "tokens": "(int64[1,8] x) => (float[1,8,64] y) { y = Gather<axis = 0>(t, x) }",
}
WEIGHTS = {"w": (64,), "v": (32,), "t": (100, 64)}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def lint(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    """Run `surgery lint`: its exit code, its only report, and what it said meanwhile."""

    def run(*words: str) -> tuple[int, dict, str]:
        monkeypatch.setattr(sys, "argv", ["surgery", "lint", *words, "--format", "json"])
        with pytest.raises(SystemExit) as ended:
            main()
        text = capfd.readouterr()
        report = json.loads(text.out)["reports"][0] if text.out else {}
        return int(ended.value.code or 0), report, text.err

    return run


def written(folder: Path, name: str) -> Path:
    model = onnx.parser.parse_model(f"{HEAD} {GRAPHS[name]}")
    used = {value for node in model.graph.node for value in node.input}
    model.graph.initializer.extend(
        numpy_helper.from_array(np.random.default_rng(0).normal(size=shape).astype("f"), weight)
        for weight, shape in WEIGHTS.items()
        if weight in used
    )
    onnx.checker.check_model(model)
    onnx.save(model, folder / f"{name}.onnx")
    return folder / f"{name}.onnx"


def rules(report: dict, severity: str = "error") -> set[str]:
    return {f["rule"] for f in report["findings"] if f["severity"] == severity}


def test_a_file_is_read_by_rules_at_any_level(lint, tmp_path: Path) -> None:
    code, report, _ = lint(str(written(tmp_path, "sound")))
    assert (code, report["verdict"], report["kind"]) == (0, "clean", "graph")
    for name, rule in (("nonzero", "nonzero"), ("dynamic", "dynamic-dimension")):
        code, report, _ = lint(str(written(tmp_path, name)))
        assert (code, rule in rules(report)) == (1, True)


def test_a_broken_file_is_an_error_of_its_own(lint, tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(written(tmp_path, "sound").read_bytes()[:100])
    code, report, err = lint(str(bad))
    assert (code, report["verdict"]) == (3, "unknown")
    assert "error[X121]" in err
    assert "Traceback" not in err


@proved
@pytest.mark.usefixtures("cache")
def test_a_sound_file_is_proved_in_every_scheme(lint, tmp_path: Path) -> None:
    code, report, _ = lint(str(written(tmp_path, "sound")), "--prove")
    assert code == 0
    assert [proof["scheme"] for proof in report["proofs"]] == ["fp16", "w8a16", "w4a16"]
    assert all(proof["passed"] and proof["cosine"] > 0.9999 for proof in report["proofs"])
    assert all("onnxruntime-qnn" in proof["toolchain"] for proof in report["proofs"])


@proved
@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("name", "rule", "said"),
    [
        ("nonzero", "refused-by-compiler", "NonZero output shape must be static"),
        ("narrow", "wrong-numbers", "y has cosine 0."),
        ("norm", "compile-failed", "Failed to finalize QNN graph"),
    ],
)
def test_what_the_compiler_says_is_a_finding(
    lint, tmp_path: Path, name: str, rule: str, said: str
) -> None:
    file = written(tmp_path, name)
    code, report, _ = lint(str(file), "--prove", "--scheme", "fp16")
    assert code == 1
    finding = next(f for f in report["findings"] if f["rule"] == rule)
    assert said in finding["why"]
    assert finding["evidence"] == "proved"
    assert "onnxruntime-qnn" in finding["known_by"]
    assert not report["proofs"][0]["passed"]


@proved
@pytest.mark.usefixtures("cache")
def test_a_file_without_static_shapes_is_not_proved(lint, tmp_path: Path) -> None:
    code, report, _ = lint(str(written(tmp_path, "dynamic")), "--prove")
    assert (code, report["proofs"]) == (1, [])
    assert rules(report) == {"dynamic-dimension"}


@proved
@pytest.mark.usefixtures("cache")
def test_a_file_that_takes_token_ids_is_run_on_some(lint, tmp_path: Path) -> None:
    _, report, err = lint(str(written(tmp_path, "tokens")), "--prove", "--scheme", "fp16")
    assert err.count("error[") == 0
    assert report["proofs"][0]["passed"]


def test_a_gathering_expert_has_no_graph_and_a_blending_one_has(lint) -> None:
    code, report, err = lint("cogvlm_full", "--graph", "--target", "snapdragon")
    assert code == 1
    assert rules(report) == {"routed-expert", "not-traceable"}
    finding = next(f for f in report["findings"] if f["rule"] == "not-traceable")
    assert "DataDependent" in finding["why"]
    assert finding["module"] == "model.layers.0"
    assert finding["place"]["line"] == 7
    assert "trace" in err
    code, report, _ = lint("cogvlm_full", "form=blend", "--graph", "--target", "snapdragon")
    assert (code, rules(report)) == (0, set())


def test_segments_without_a_layout_are_traced_with_one_and_warned_of(lint) -> None:
    code, report, err = lint("cogvlm_full", "form=segments", "--graph", "--fail-on", "warning")
    warned = {found["rule"] for found in report["findings"]}
    assert (code, warned) == (1, {"dynamic-shapes", "resident-experts"})
    assert "block+expert, prefill: trace" in err
    assert "block+expert, decode" not in err  # what is decoded is text
    assert "block, decode: trace" in err


def test_allow_takes_the_verdict_of_the_tracer_too(lint, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "defaults: [cogvlm_full, _self_]\n"
        "allow: {routed-expert: a server runs it, not-traceable: a server runs it}\n"
    )
    code, report, _ = lint(str(file), "--graph", "--fail-on", "warning")
    assert (code, rules(report)) == (0, set())


@pytest.mark.slow
@proved
@pytest.mark.usefixtures("cache")
def test_a_recipe_is_proved_block_by_block_and_remembered(lint) -> None:
    words = ("genieblue_skip", "--prove", "--scheme", "w4a16", "--target", "snapdragon")
    code, report, err = lint(*words)
    assert (code, report["verdict"]) == (0, "clean")
    rows = {(p["form"], p["blocks"], p["phase"]) for p in report["proofs"]}
    assert rows == {
        (form, blocks, phase)
        for form, blocks in (("block", 3), ("block+lora", 9))
        for phase in ("prefill", "decode")
    }
    assert all(p["passed"] and p["cosine"] >= 0.9999 for p in report["proofs"])
    assert err.count("quantize to w4a16") == 4
    _, again, err = lint(*words)
    assert again == report
    assert "quantize" not in err


def test_without_the_extra_the_pip_command_is_said_before_any_work(
    lint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(toolchain, "_check_machine", lambda: None)
    monkeypatch.setattr(toolchain, "version", missing)
    code, report, err = lint("lora", "--prove")
    assert (code, report) == (3, {})
    assert "error[X101]" in err
    assert "pip install" in err
    assert "trace" not in err
