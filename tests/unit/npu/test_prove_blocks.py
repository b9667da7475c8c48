"""Proofs of real blocks, their cache, and what is said where the compiler can't be asked."""

import platform
from importlib.metadata import PackageNotFoundError

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch.nn import functional
from transformers import AutoModelForCausalLM
from transformers.models.qwen2 import modeling_qwen2

from surgery.diagnostics.diagnostic import SurgeryError
from surgery.model.source import find_model
from surgery.npu.qualcomm import prove as proving
from surgery.npu.qualcomm import toolchain as chain
from surgery.npu.qualcomm.agreement import agreement
from surgery.npu.qualcomm.compiler import compile_graph, emulate, run_tasks
from surgery.npu.qualcomm.cpu_reference import reference
from surgery.npu.qualcomm.model_files import files_of, graph_digest
from surgery.npu.qualcomm.prove import prove
from surgery.npu.qualcomm.quantize import quantize
from surgery.npu.qualcomm.toolchain import toolchain, why_not
from surgery.npu.qualcomm.workers.task import Task

needs_compiler = pytest.mark.skipif(bool(why_not()), reason=why_not() or "runs")
ELITE = (69, 79)
TOKENS, WINDOW = 1, 16
NAMES = ("x", "k", "v", "cos", "sin", "mask")


class Decode(torch.nn.Module):
    """One block with its key-value cache as inputs and outputs."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x, k, v, cos, sin, mask):
        cache = modeling_qwen2.DynamicCache()
        cache.update(k, v, self.block.self_attn.layer_idx)
        turned = (cos, sin)
        hidden = self.block(
            x, attention_mask=mask, position_embeddings=turned, past_key_values=cache
        )
        layer = cache.layers[self.block.self_attn.layer_idx]
        return hidden, layer.keys[:, :, -TOKENS:], layer.values[:, :, -TOKENS:]


def fused(norm, x):
    return functional.rms_norm(x, (x.shape[-1],), norm.weight, norm.variance_epsilon)


def inputs(config, seed):
    make = torch.Generator().manual_seed(seed)
    heads, width = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    past = (1, heads, WINDOW, width)
    angles = torch.rand(1, TOKENS, width, generator=make)
    tensors = (
        torch.randn(1, TOKENS, config.hidden_size, generator=make),
        torch.randn(past, generator=make),
        torch.randn(past, generator=make),
        angles.cos(),
        angles.sin(),
        torch.zeros(1, 1, TOKENS, WINDOW + TOKENS),
    )
    return dict(zip(NAMES, tensors, strict=True))


@pytest.fixture(scope="module")
def block(tmp_path_factory):
    """A decode step of the trained builtin model's first block: graph, inputs, torch's outputs."""
    folder = find_model("builtin/tiny-qwen2").folder
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    model.model.layers[0].self_attn.layer_idx = 0
    step = Decode(model.model.layers[0]).eval()
    file = tmp_path_factory.mktemp("block") / "block.onnx"
    feeds = inputs(model.config, 0)
    with pytest.MonkeyPatch.context() as patched, torch.no_grad():
        patched.setattr(modeling_qwen2.Qwen2RMSNorm, "forward", fused)
        outputs = step(**feeds)
        made = torch.onnx.export(
            step,
            tuple(feeds.values()),
            input_names=list(NAMES),
            output_names=["hidden", "key", "value"],
            opset_version=23,
            dynamo=True,
            verbose=False,
        )
    made.save(file, external_data=True)
    samples = [inputs(model.config, seed) for seed in (0, 1)]
    arrays = [{name: t.numpy() for name, t in sample.items()} for sample in samples]
    expected = dict(zip(("hidden", "key", "value"), (t.numpy() for t in outputs), strict=True))
    return file, arrays, expected


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "proofs"


def saved(folder, text, name="graph.onnx", opset=23, **weights):
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> g {text}')
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in weights.items())
    onnx.save(model, folder / name)
    return folder / name


def square(folder, name="square.onnx"):
    return saved(folder, "(float[4,8] x) => (float[4,8] y) { y = Mul(x, x) }", name)


def nonzero(folder):
    graph = "(float[4,8] x) => (int64[2,n] y) { z = Mul(x, x) [found] y = NonZero(z) }"
    return saved(folder, graph, "nonzero.onnx")


def ones():
    return {"x": np.ones((4, 8), dtype=np.float32)}


def code_of(call, *args, **kwargs):
    with pytest.raises(SurgeryError) as caught:
        call(*args, **kwargs)
    assert caught.value.exit_code == 3
    return caught.value.diagnostics[0].code


@needs_compiler
def test_trained_block_is_right_in_every_scheme_and_kept(block, cache):
    file, (feeds, sample), expected = block
    before = graph_digest(file)
    steps = []
    found = prove(file, feeds, [sample], *ELITE, expected=expected, progress=steps.append)
    assert [verdict.scheme for verdict in found] == ["fp16", "w8a16", "w4a16"]
    assert all(verdict.passed for verdict in found), found
    assert all(verdict.agreement.keys() == expected.keys() for verdict in found)
    fp16, w8a16, w4a16 = found
    assert fp16.agreement == fp16.against_float
    assert w4a16.context_bytes < w8a16.context_bytes < fp16.context_bytes
    assert w4a16.against_float["hidden"].cosine < w8a16.against_float["hidden"].cosine < 1
    assert all(verdict.toolchain == str(toolchain()) for verdict in found)
    assert len(steps) == 5
    steps.clear()
    assert prove(file, feeds, [sample], *ELITE, expected=expected, progress=steps.append) == found
    assert steps == []
    assert graph_digest(file) == before
    assert {made.name for made in file.parent.iterdir()} == {"block.onnx", "block.onnx.data"}


@needs_compiler
def test_another_graph_chip_input_or_expectation_is_another_proof(tmp_path, cache):
    file = square(tmp_path)
    first = prove(file, ones(), [], *ELITE, ["fp16"])[0]
    assert first.passed
    prove(file, ones(), [], *ELITE, ["fp16"])
    assert len(list(cache.iterdir())) == 1
    prove(file, {"x": 2 * ones()["x"]}, [], *ELITE, ["fp16"])
    prove(file, ones(), [], 87, 81, ["fp16"])
    wrong = prove(file, ones(), [], *ELITE, ["fp16"], expected={"y": -ones()["x"]})[0]
    assert wrong.cosine < -0.9999
    assert not wrong.passed
    assert len(list(cache.iterdir())) == 4


@needs_compiler
def test_spoilt_cache_is_made_anew(tmp_path, cache):
    file = square(tmp_path)
    first = prove(file, ones(), [], *ELITE, ["fp16"])[0]
    for kept in cache.iterdir():
        kept.write_text("{")
    assert prove(file, ones(), [], *ELITE, ["fp16"])[0].agreement == first.agreement


@needs_compiler
def test_compiled_graph_is_one_node_with_its_binary(tmp_path):
    out = tmp_path / "made.onnx"
    answer = compile_graph(square(tmp_path), *ELITE, out, fp16=True)
    assert answer.accepted
    assert answer.compatibility.split(":")[4:6] == ["79", "69"]
    assert answer.peak_bytes > 1e7
    assert [node.op_type for node in onnx.load(out).graph.node] == ["EPContext"]
    assert (tmp_path / "made_qnn.bin").stat().st_size == answer.context_bytes > 0
    assert {made.suffix for made in tmp_path.iterdir() if made.is_file()} == {".onnx", ".bin"}


@needs_compiler
def test_refused_node_is_named_with_the_reason_and_nothing_is_written(tmp_path):
    out = tmp_path / "made.onnx"
    answer = compile_graph(nonzero(tmp_path), *ELITE, out, fp16=True)
    assert not answer.accepted
    assert [(node.node, node.op) for node in answer.refused] == [("found", "NonZero")]
    assert "output shape must be static" in answer.refused[0].reason
    assert "EPContext" in answer.operators  # the rest was compiled, and it is no acceptance
    assert sorted(made.name for made in tmp_path.iterdir()) == ["nonzero.onnx"]


@needs_compiler
def test_emulator_is_held_against_the_cpu(tmp_path):
    file, feeds = square(tmp_path), {"x": np.linspace(-3, 3, 32, dtype=np.float32).reshape(4, 8)}
    found = emulate(file, feeds, *ELITE, fp16=True)
    wanted = reference(file, feeds)
    assert 0 < agreement(found, wanted)["y"].error < 0.01  # fp16 rounds, so it wasn't the CPU
    assert agreement(found, wanted)["y"].is_enough
    assert code_of(emulate, nonzero(tmp_path), ones(), *ELITE, fp16=True) == "X104"


@needs_compiler
@pytest.mark.parametrize(("soc", "arch"), [(999, 79), (69, 99)])
def test_unknown_chip_is_an_error(tmp_path, soc, arch):
    out = tmp_path / "made.onnx"
    assert code_of(compile_graph, square(tmp_path), soc, arch, out, fp16=True) == "X103"
    assert not out.exists()


@needs_compiler
def test_step_out_of_time_is_an_answer_that_is_not_kept(tmp_path, cache):
    verdict = prove(square(tmp_path), ones(), [], *ELITE, ["fp16", "w8a16"], seconds=0.01)
    assert [found.passed for found in verdict] == [False, False]
    assert all("took more than 0.01 s" in found.error for found in verdict)
    assert not cache.exists()


@needs_compiler
def test_crash_takes_no_other_task_along(tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    models = [square(tmp_path), broken, square(tmp_path)]
    folders = [tmp_path / str(i) for i in range(4)]
    for folder in folders:
        folder.mkdir()
    soc, arch = ELITE
    tasks = [
        Task(model=model, folder=folder, soc=soc, arch=arch)
        for model, folder in zip(models, folders, strict=False)
    ]
    tasks.insert(1, Task(model=models[0], folder=folders[3], soc=soc, arch=arch))
    (folders[3] / "feeds.npz").write_bytes(b"not numbers")
    answers = run_tasks(tasks)
    assert [answer.accepted for answer in answers] == [True, True, False, True]
    assert answers[1].run_error
    assert answers[2].error


@needs_compiler
def test_weights_of_four_bits_are_symmetric_and_ranges_are_kept(block, tmp_path):
    file, (feeds, _), _ = block
    ranges = tmp_path / "ranges.json"
    quantize(file, tmp_path / "w8.onnx", "w8a16", [feeds], ranges=ranges)
    seen = ranges.read_bytes()
    quantize(file, tmp_path / "w4.onnx", "w4a16", [], ranges=ranges)
    assert ranges.read_bytes() == seen
    graph = onnx.load(tmp_path / "w4.onnx").graph
    tensors = {t.name: t for t in graph.initializer}
    small = [t for t in tensors.values() if t.data_type == onnx.TensorProto.INT4]
    weights = [numpy_helper.to_array(t).astype(int) for t in small if len(t.dims) == 2]
    zeros = [numpy_helper.to_array(t).astype(int) for t in small if len(t.dims) == 1]
    assert len(weights) == len(zeros) == 7
    assert all((np.abs(w).max(0) >= 7).all() for w in weights), "each column has its scale"
    assert not any(zero.any() for zero in zeros)
    assert {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)} == {1}


@needs_compiler
def test_four_bits_are_packed_as_onnxruntime_packs_them():
    from onnxruntime.quantization.quant_utils import pack_bytes_to_4bit

    from surgery.npu.qualcomm.workers.quantize import _packed

    for size in (0, 1, 2, 7, 64):
        numbers = np.random.default_rng(size).integers(-8, 8, size).astype(np.int8).tobytes()
        assert _packed(numbers) == pack_bytes_to_4bit(numbers)


@needs_compiler
def test_graph_that_cannot_be_quantized_says_so(tmp_path):
    file = square(tmp_path)
    assert code_of(quantize, file, tmp_path / "q.onnx", "w8a16", [{"z": ones()["x"]}]) == "X106"
    assert not (tmp_path / "q.onnx").exists()
    verdict = prove(file, {"z": ones()["x"]}, [], *ELITE, ["w8a16"])[0]
    assert not verdict.passed
    assert "quantizer" in verdict.error


def test_reference_without_its_inputs_is_an_error(tmp_path):
    pytest.importorskip("onnxruntime")
    assert code_of(reference, square(tmp_path), {}) == "X105"


def test_malformed_graph_and_lost_tensors_are_errors(tmp_path):
    weight = np.ones((64, 64), dtype=np.float32)
    graph = "(float[4,64] x) => (float[4,64] y) { y = MatMul(x, w) }"
    file = saved(tmp_path, graph, w=weight)
    model = onnx.load(file)
    onnx.save(model, file, save_as_external_data=True, location="w.data", size_threshold=0)
    assert files_of(file) == [file, tmp_path / "w.data"]
    whole = graph_digest(file)
    with (tmp_path / "w.data").open("r+b") as data:
        data.write(b"\1")
    assert graph_digest(file) != whole
    (tmp_path / "w.data").unlink()
    assert code_of(graph_digest, file) == "X107"
    file.write_bytes(b"\xff\xff no graph")
    assert code_of(graph_digest, file) == "X107"
    assert code_of(graph_digest, tmp_path / "none.onnx") == "X107"


@needs_compiler
@pytest.mark.parametrize("scheme", ["w8a16", "w4a16"])
def test_layer_norm_between_products_is_quantized_as_the_compiler_takes_it(
    scheme, tmp_path, monkeypatch
):
    monkeypatch.setenv("SURGERY_CACHE", str(tmp_path / "cache"))
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 23]> g (float[1,16,64] x) => (float[1,16,64] y) '
        "{ a = MatMul(x, v) n = LayerNormalization(a, g, b) y = MatMul(n, w) }"
    )
    draw = np.random.default_rng(0).standard_normal
    held = {"v": draw((64, 64)) / 8, "w": draw((64, 64)) / 8, "g": 1 + draw(64) / 5, "b": draw(64)}
    tensors = [numpy_helper.from_array(a.astype(np.float32), name) for name, a in held.items()]
    model.graph.initializer.extend(tensors)
    onnx.save(model, tmp_path / "norm.onnx")
    feeds, other = ({"x": draw((1, 16, 64)).astype(np.float32)} for _ in range(2))
    (verdict,) = prove(tmp_path / "norm.onnx", feeds, [other], *ELITE, [scheme])
    assert verdict.passed, verdict.refused


def test_missing_extra_says_the_command(monkeypatch):
    if platform.system() != "Linux":
        pytest.skip("says first that the machine is another")

    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(chain, "version", absent)
    assert code_of(toolchain) == "X101"
    assert "pip install 'model-surgery[snapdragon]'" in why_not()
    assert code_of(proving.prove, None, {}, [], *ELITE) == "X101"


@pytest.mark.parametrize(
    ("system", "machine", "libc"),
    [
        ("Darwin", "arm64", ("", "")),
        ("Linux", "aarch64", ("glibc", "2.39")),
        ("Linux", "x86_64", ("glibc", "2.31")),
        ("Linux", "x86_64", ("", "")),
        ("Windows", "AMD64", ("", "")),
    ],
)
def test_other_machine_is_named(monkeypatch, system, machine, libc):
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    with pytest.raises(SurgeryError) as caught:
        toolchain()
    said = caught.value.diagnostics[0]
    assert said.code == "X102"
    assert all(word in said.why for word in (system, machine, *libc))


def test_agreement_is_of_numbers_and_never_by_chance():
    one = np.array([1.0, 2.0], dtype=np.float32)
    infinite = np.array([1.0, -np.inf], dtype=np.float32)
    nothing = np.zeros(2, dtype=np.float32)
    assert agreement({"y": one}, {"y": one})["y"].cosine == 1
    assert agreement({"y": nothing}, {"y": nothing})["y"].is_enough
    assert agreement({"y": infinite}, {"y": infinite})["y"].is_enough
    off = agreement({"y": one + np.float32([0, 0.5])}, {"y": one})["y"]
    assert off.error == 0.5
    assert 0.98 < off.cosine < 0.9999
    for found in ({}, {"y": nothing}, {"y": one[:1]}, {"y": infinite}, {"y": one * np.nan}):
        assert agreement(found, {"y": one})["y"].cosine == 0
    assert agreement({}, {"y": one})["y"].error == float("inf")
