"""Graphs whose compilation says nothing of what they compute, and what helps; all on the compiler.

Source: measured on onnxruntime-qnn 2.7.0, chips 69, 87, 57 and 43 alike.
"""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from surgery.npu.qualcomm.compiler import compile_graph
from surgery.npu.qualcomm.prove import prove
from surgery.npu.qualcomm.toolchain import why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "runs")
ELITE = (69, 79)
NORM = """(float[1,16,64] x) => (float[1,16,64] y) <float two = {2}, float eps = {0.000001},
    int64[1] last = {-1}>"""
MEAN = "p = Pow(x, two) m = ReduceMean(p, last) e = Add(m, eps) r = Sqrt(e) i = Reciprocal(r)"
ROUTED = """(float[16,256] x) => (float[32,256,1] y) <int64[1] k = {2}, int64[1] flat = {-1},
    int64[2] rows = {32, 256}, int64[3] twice = {16, 2, 256}, int64[1] at = {1}>"""
CHOICE = """l = MatMul(x, r) v, i = TopK(l, k) j = Reshape(i, flat) a = Unsqueeze(x, at)
    b = Expand(a, twice) c = Reshape(b, rows) d = Unsqueeze(c, flat)"""
QUANTIZED = """(float[4,128] x) => (float[4,64] y) <float s = {0.00025}, uint16 z = {32768},
    float ws = {0.07}> { q = QuantizeLinear(x, s, z) b = DequantizeLinear(q, s, z)
    d = DequantizeLinear(w, ws, wz) c = MatMul(b, d)
    p = QuantizeLinear(c, s, z) y = DequantizeLinear(p, s, z) }"""


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.fixture
def look(tmp_path, monkeypatch):
    """Compile a graph alone, and prove it: the compiler's answer and the verdict."""
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path / "cache"))

    def compiled_and_proved(graph, **weights):
        head = '<ir_version: 10, opset_import: ["" : 23]> g'
        model = onnx.parser.parse_model(f"{head} {graph}")
        tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
        model.graph.initializer.extend(tensors)
        file = tmp_path / "trap.onnx"
        onnx.save(model, file)
        shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
        answer = compile_graph(file, *ELITE, tmp_path / "compiled.onnx", fp16=True)
        return answer, prove(file, {"x": normal(*shape)}, [], *ELITE, ["fp16"])[0]

    return compiled_and_proved


def test_rms_norm_as_transformers_writes_it_passes_node_by_node_and_fails_whole(look, tmp_path):
    answer, verdict = look(f"{NORM} {{ {MEAN} n = Mul(x, i) y = Mul(w, n) }}", w=normal(64))
    assert answer.refused == verdict.refused == ()
    assert "Failed to finalize QNN graph" in verdict.error
    assert not verdict.passed
    assert not (tmp_path / "compiled.onnx").exists()


@pytest.mark.parametrize("body", ["n = Mul(x, i) y = Mul(n, w)", "y = RMSNormalization(x, w)"])
def test_rms_norm_with_its_weight_on_the_right_or_as_an_operator_is_right(look, body):
    before = "" if "RMS" in body else MEAN
    _, verdict = look(f"{NORM} {{ {before} {body} }}", w=normal(64))
    assert verdict.passed


@pytest.mark.parametrize("shape", ["1,4,16,32", "4,16,16"])
def test_narrow_rms_norm_over_several_leading_dimensions_computes_wrong_numbers(look, shape):
    graph = f"(float[{shape}] x) => (float[{shape}] y) {{ y = RMSNormalization(x, w) }}"
    answer, verdict = look(graph, w=normal(int(shape.split(",")[-1])))
    assert answer.accepted
    assert verdict.accepted
    assert not verdict.error
    assert verdict.cosine < 0.99
    assert not verdict.passed


@pytest.mark.parametrize("shape", ["1,64,32", "1,4,16,64"])
def test_other_rms_norms_are_right(look, shape):
    graph = f"(float[{shape}] x) => (float[{shape}] y) {{ y = RMSNormalization(x, w) }}"
    _, verdict = look(graph, w=normal(int(shape.split(",")[-1])))
    assert verdict.passed


def test_expert_weights_by_gathernd_compile_and_do_not_run(look):
    weights = {"w": normal(8, 256, 256) / 16, "r": normal(256, 8)}
    nd = "u = Unsqueeze(j, flat) g = GatherND(w, u) y = MatMul(g, d)"
    answer, verdict = look(f"{ROUTED} {{ {CHOICE} {nd} }}", **weights)
    assert answer.accepted
    assert verdict.accepted
    assert not verdict.passed
    _, verdict = look(f"{ROUTED} {{ {CHOICE} g = Gather(w, j) y = MatMul(g, d) }}", **weights)
    assert verdict.passed


@pytest.mark.parametrize(("kind", "zero"), [("int4", 2), ("int4", 0), ("uint4", 8)])
def test_signed_int4_weights_with_a_zero_point_compute_wrong_numbers(look, kind, zero):
    dtype = getattr(ml_dtypes, kind)
    numbers = np.random.default_rng(0).integers(-7, 8, (128, 64)) + (8 if kind == "uint4" else 0)
    answer, verdict = look(QUANTIZED, w=numbers.astype(dtype), wz=np.array(zero, dtype))
    assert answer.accepted
    assert verdict.accepted
    assert verdict.passed == ((kind, zero) != ("int4", 2))


def test_rounding_by_casts_is_left_out(look):
    graph = "(float[4,64] x) => (float[4,64] y) { i = Cast<to = 6>(x) y = Cast<to = 1>(i) }"
    answer, verdict = look(graph)
    assert answer.accepted
    assert not verdict.passed
