"""Reading ONNX files: whole, cut short, without their weights, and of gigabytes."""

import resource
import time

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from surgery.diagnostics.diagnostic import SurgeryError
from surgery.lint.onnx.live_nodes import live_graph
from surgery.lint.onnx.reader import read_onnx, subject_of

TEXT = """
<ir_version: 10, opset_import: ["" : 23, "mine" : 1]>
g (float[2, 4] x) => (float[tokens, 4] y) { t = mine.twice(x) y = Relu(t) }
<domain: "mine", opset_import: ["" : 23]>
twice (a) => (b) { b = Add(a, a) }
"""
WIDTH = 1024


def saved(file, model):
    onnx.save(model, file)
    return file


def decoder(file, layers, *, width=WIDTH):
    """A chain of products whose weights lie in a file of holes beside it; 4 bytes a number."""
    size = 4 * width * width
    nodes = [
        helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"h{i + 1}"], name=f"layer_{i}")
        for i in range(layers)
    ]
    weights = []
    for i in range(layers):
        weight = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[width, width])
        weight.data_location = TensorProto.EXTERNAL
        told = {"location": "weights.bin", "offset": str(i * size), "length": str(size)}
        for key, value in told.items():
            weight.external_data.add(key=key, value=value)
        weights.append(weight)
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, width])
        for name in ("h0", f"h{layers}")
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    with (file.parent / "weights.bin").open("wb") as data:
        data.truncate(layers * size)
    return saved(file, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)]))


def refused(file):
    with pytest.raises(SurgeryError) as caught:
        read_onnx(file)
    assert caught.value.exit_code == 3
    assert "Traceback" not in str(caught.value)
    return caught.value.diagnostics


def test_shapes_are_inferred_and_functions_put_in_place(tmp_path):
    model = read_onnx(saved(tmp_path / "g.onnx", onnx.parser.parse_model(TEXT)))
    assert [node.op_type for node in model.graph] == ["Add", "Relu"]
    assert [out.shape.numpy() for node in model.graph for out in node.outputs] == [(2, 4), (2, 4)]


def test_a_node_goes_by_its_name(tmp_path):
    subject = subject_of(decoder(tmp_path / "g.onnx", 2))
    assert [subject.module_of(node) for node in subject.model.graph] == ["layer_0", "layer_1"]
    assert subject.key == ""


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"not a graph at all", b"{}"])
def test_what_is_no_graph(tmp_path, content):
    file = tmp_path / "g.onnx"
    file.write_bytes(content)
    assert [fault.code for fault in refused(file)] == ["X121"]


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.99])
def test_a_graph_that_was_cut_short(tmp_path, kept):
    weight = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 64]) for n in "xy"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight]
    )
    file = saved(tmp_path / "g.onnx", helper.make_model(graph))
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept)])
    assert [fault.code for fault in refused(file)] == ["X121"]


def test_no_file_and_a_folder(tmp_path):
    assert "is not there" in refused(tmp_path / "g.onnx")[0].what
    assert "is a folder" in refused(tmp_path)[0].what


def test_weights_that_are_gone(tmp_path):
    file = decoder(tmp_path / "g.onnx", 3)
    (tmp_path / "weights.bin").unlink()
    faults = refused(file)
    assert [fault.code for fault in faults] == ["X122"]
    assert faults[0].why == "`weights.bin` is not next to it, and `w0` and 2 more should be in it"


def test_weights_that_were_cut_short(tmp_path):
    file = decoder(tmp_path / "g.onnx", 3)
    with (tmp_path / "weights.bin").open("r+b") as data:
        data.truncate(3 * 4 * WIDTH * WIDTH - 1)
    faults = refused(file)
    assert [fault.code for fault in faults] == ["X122"]
    assert "ends after 12,582,911 bytes, and `w2` should be in it" in faults[0].why


def test_stored_weights_that_were_cut_short(tmp_path):
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[64, 64])
    weight.raw_data = b"\x00" * 100
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 64]) for n in "xy"]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [weight])
    faults = refused(saved(tmp_path / "g.onnx", helper.make_model(graph)))
    assert [fault.code for fault in faults] == ["X122"]
    assert "100 bytes" in faults[0].why


def test_a_graph_of_gigabytes_is_read_without_its_weights(tmp_path):
    file = decoder(tmp_path / "g.onnx", 48, width=4096)
    assert (tmp_path / "weights.bin").stat().st_size >= 3 * 2**30
    before, begin = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    model = read_onnx(file)
    assert len(live_graph(model).nodes) == 48
    assert time.process_time() - begin < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def test_a_file_of_gigabytes_that_is_no_graph(tmp_path):
    file = tmp_path / "g.onnx"
    with file.open("wb") as data:
        data.truncate(3 * 2**30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "more than 2 GB" in refused(file)[0].why
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
