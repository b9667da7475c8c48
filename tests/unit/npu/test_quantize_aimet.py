"""AIMET finds the scales of weights; the rest of a quantized graph is what it is without it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from surgery.diagnostics.diagnostic import SurgeryError
from surgery.npu.qualcomm.agreement import agreement
from surgery.npu.qualcomm.aimet import aimet_version, choose_quantizer
from surgery.npu.qualcomm.arrays import read_arrays
from surgery.npu.qualcomm.compiler import emulate
from surgery.npu.qualcomm.cpu_reference import reference
from surgery.npu.qualcomm.quantize import Branch, quantize
from surgery.npu.qualcomm.toolchain import why_not

needs_aimet = pytest.mark.skipif(not aimet_version(), reason="aimet-onnx is not installed")
needs_compiler = pytest.mark.skipif(bool(why_not()), reason=why_not() or "runs")
ELITE = (69, 79)
ROWS, WIDTH, COLUMNS, RANK = 24, 48, 32, 4
LORA = ("a", "b")


def matrix() -> np.ndarray:
    """Where a column has one great weight, in a row that is rarely seen."""
    found = np.random.default_rng(0).normal(size=(WIDTH, COLUMNS)).astype(np.float32)
    found[0] *= 6
    return found


def samples(count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    make = np.random.default_rng(seed)
    found = make.normal(size=(count, ROWS, WIDTH)).astype(np.float32)
    found[..., 0] *= 0.02
    return [{"x": one} for one in found]


def with_lora(sample: dict[str, np.ndarray], size: float) -> dict[str, np.ndarray]:
    make = np.random.default_rng(9)
    a, b = make.normal(size=(WIDTH, RANK)), make.normal(size=(RANK, COLUMNS))
    return {
        **sample,
        "a": (size * a).astype(np.float32),
        "b": (size * b).astype(np.float32),
    }


def saved(file: Path, *, lora: bool) -> Path:
    """x @ W, and beside it x @ A @ B, whose A and B are inputs."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "base")]
    inputs = {"x": (ROWS, WIDTH)}
    if lora:
        nodes[0].output[0] = "own"
        nodes += [
            helper.make_node("MatMul", ["x", "a"], ["down"], "down"),
            helper.make_node("MatMul", ["down", "b"], ["up"], "up"),
            helper.make_node("Add", ["own", "up"], ["y"], "sum"),
        ]
        inputs |= {"a": (WIDTH, RANK), "b": (RANK, COLUMNS)}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (ROWS, COLUMNS))],
        [numpy_helper.from_array(matrix(), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.save(model, file)
    return file


def rounded(weights: np.ndarray, scales: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(weights / scales), -8, 7) * scales


def best_scales(weights: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Of twenty equal steps up to where -8 to 7 hold the column, that of the least error."""
    whole = np.maximum(weights.max(0) / 7, -weights.min(0) / 8)
    steps = whole * np.arange(1, 21)[:, None] / 20
    errors = [((rows @ (rounded(weights, s) - weights)) ** 2).sum(0) for s in steps]
    return np.take_along_axis(steps, np.argmin(errors, 0)[None], 0)[0]


def error_of(model: Path, quantized: Path) -> float:
    """On samples that nothing was calibrated on."""
    feeds = samples(1, seed=7)[0]
    return float(((reference(quantized, feeds)["y"] - reference(model, feeds)["y"]) ** 2).sum())


@needs_aimet
def test_scales_are_those_of_the_least_error_of_products(tmp_path: Path) -> None:
    model, scales = saved(tmp_path / "float.onnx", lora=False), tmp_path / "scales"
    shown = samples(3)
    quantize(model, tmp_path / "q.onnx", "w4a16", shown, quantizer="aimet", scales=scales)
    found = read_arrays(scales)["w"]
    wanted = best_scales(matrix(), np.concatenate([sample["x"] for sample in shown]))
    assert found.shape == (COLUMNS,)
    np.testing.assert_allclose(found, wanted, rtol=1e-3)
    assert (found < 0.9 * np.abs(matrix()).max(0) / 7).any(), "some cut their greatest weight off"


@needs_aimet
def test_the_graph_has_these_scales_no_zero_point_and_a_smaller_error(tmp_path: Path) -> None:
    model, scales = saved(tmp_path / "float.onnx", lora=False), tmp_path / "scales"
    quantize(model, tmp_path / "q.onnx", "w4a16", samples(3), quantizer="aimet", scales=scales)
    quantize(model, tmp_path / "plain.onnx", "w4a16", samples(3))
    held = {tensor.name: tensor for tensor in onnx.load(tmp_path / "q.onnx").graph.initializer}
    small = [t for t in held.values() if t.data_type == TensorProto.INT4]
    zeros = next(numpy_helper.to_array(t) for t in small if len(t.dims) == 1)
    whole = next(numpy_helper.to_array(t) for t in small if len(t.dims) == 2).astype(np.float32)
    found = read_arrays(scales)["w"]
    assert not zeros.astype(int).any()
    np.testing.assert_array_equal(whole * found, rounded(matrix(), found))
    assert error_of(model, tmp_path / "q.onnx") < 0.8 * error_of(model, tmp_path / "plain.onnx")


@needs_aimet
def test_kept_scales_count_and_not_the_samples(tmp_path: Path) -> None:
    """So the graph of one token has the weights of the graph of many."""
    model, scales = saved(tmp_path / "float.onnx", lora=False), tmp_path / "scales"
    quantize(model, tmp_path / "one.onnx", "w4a16", samples(3), quantizer="aimet", scales=scales)
    before = scales.read_bytes()
    other = samples(1, seed=3)
    quantize(model, tmp_path / "two.onnx", "w4a16", other, quantizer="aimet", scales=scales)
    assert scales.read_bytes() == before
    one, two = (
        [
            numpy_helper.to_array(t).tobytes()
            for t in onnx.load(tmp_path / name).graph.initializer
            if t.data_type == TensorProto.INT4
        ]
        for name in ("one.onnx", "two.onnx")
    )
    assert one == two


@needs_aimet
def test_beside_lora_the_numbers_are_those_of_the_matrix_alone(tmp_path: Path) -> None:
    alone, both = saved(tmp_path / "one.onnx", lora=False), saved(tmp_path / "two.onnx", lora=True)
    shown = samples(3)
    off = [with_lora(sample, 0) for sample in shown]
    branch = Branch(LORA, [with_lora(sample, 0.3) for sample in shown])
    quantize(alone, tmp_path / "q1.onnx", "w4a16", shown, quantizer="aimet")
    quantize(both, tmp_path / "q2.onnx", "w4a16", off, branch=branch, quantizer="aimet")
    feeds = samples(1, seed=5)[0]
    wanted = reference(tmp_path / "q1.onnx", feeds)["y"]
    found = reference(tmp_path / "q2.onnx", with_lora(feeds, 0))["y"]
    np.testing.assert_array_equal(found, wanted)
    assert not np.array_equal(reference(tmp_path / "q2.onnx", with_lora(feeds, 0.3))["y"], wanted)


@needs_aimet
@needs_compiler
@pytest.mark.parametrize("scheme", ["w4a16", "w8a16"])
def test_the_emulator_computes_it_as_the_cpu_does(tmp_path: Path, scheme: str) -> None:
    model, quantized = saved(tmp_path / "float.onnx", lora=True), tmp_path / "q.onnx"
    on = [with_lora(sample, 0.1) for sample in samples(3)]
    quantize(model, quantized, scheme, on, quantizer="aimet")
    feeds = with_lora(samples(1, seed=5)[0], 0.1)
    found = emulate(quantized, feeds, *ELITE, fp16=True)
    assert agreement(found, reference(quantized, feeds))["y"].cosine > 0.9999


@needs_aimet
def test_aimet_is_chosen_where_it_is_installed_unless_the_user_says_otherwise() -> None:
    assert choose_quantizer(None) == "aimet"
    assert choose_quantizer("aimet") == "aimet"
    assert choose_quantizer("onnxruntime") == "onnxruntime"


@needs_aimet
def test_what_it_fails_on_is_told(tmp_path: Path) -> None:
    model = saved(tmp_path / "float.onnx", lora=False)
    with pytest.raises(SurgeryError) as caught:
        quantize(model, tmp_path / "q.onnx", "w4a16", [], quantizer="aimet")
    found = caught.value.diagnostics[0]
    assert found.code == "X106"
    assert found.why.startswith("AIMET ended with code 1")
    assert not (tmp_path / "q.onnx").exists()


WITHOUT = """
import sys
from importlib.machinery import PathFinder
class Hidden(PathFinder):
    @classmethod
    def find_spec(cls, name, *rest):
        if name == "aimet_onnx":
            return None
        return super().find_spec(name, *rest)
sys.meta_path[:] = [Hidden if finder is PathFinder else finder for finder in sys.meta_path]
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.npu.qualcomm.aimet import choose_quantizer
assert choose_quantizer(None) == choose_quantizer("onnxruntime") == "onnxruntime"
try:
    choose_quantizer("aimet")
except SurgeryError as error:
    print(error.diagnostics[0].code)
assert not {"torch", "onnxruntime", "onnx", "aimet_onnx"} & {*sys.modules}
"""


def test_without_it_onnxruntime_is_chosen_and_asking_for_it_is_refused() -> None:
    """Runs with AIMET and without: there is none where Python finds none."""
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, env=os.environ, check=False
    )
    assert (ended.stdout, ended.stderr) == ("X108\n", "")
