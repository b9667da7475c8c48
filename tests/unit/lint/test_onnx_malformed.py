"""Every ONNX file that breaks ONNX's rules ends in one sentence: no traceback, no crash, no log."""

import copy
import os
import random
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from surgery.cli import main
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.lint.linter import Depth, lint_subject
from surgery.lint.onnx.reader import read_onnx
from surgery.lint.subject import find_subjects
from surgery.npu.target import load_target

HEAD = '<ir_version: 10, opset_import: ["" : 23]>\n'
SOFTMAX = """
g (float[2, 4] x) => (float[2, 4] y) <float[4, 4] w = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}> {
  t = MatMul(x, w) u = Softmax <axis = 1> (t) y = Relu(u)
}
"""
RESHAPED = """
g (float[1, 2, 8, 8] x) => (float[n, m] y) <int64[2] s = {1, -1}> {
  t = Transpose <perm = [0, 2, 3, 1]> (x) z = Shape(t) y = Reshape(t, s)
}
"""
BRANCHED = """
g (float[2, 4] x, bool c) => (float[2, 4] y) {
  y = If (c) <then_branch = t () => (float[2, 4] a) { a = Add(x, x) },
              else_branch = e () => (float[2, 4] b) { b = Mul(x, x) }>
}
"""
MANY = """
g (float[2, 4] x) => (float[r, k] y)
<float a = {0.1}, uint8 z = {0}, int64[1] i = {0}, int64[1] e = {2}> {
  q = QuantizeLinear(x, a, z) d = DequantizeLinear(q, a, z) v, w = TopK(d, e)
  f = Einsum <equation = "ab,ab->ab"> (d, d) r = LayerNormalization <axis = -1> (f, f)
  s = Slice(r, i, e) y = Cast <to = 1> (s)
}
"""
GRAPHS = (SOFTMAX, RESHAPED, BRANCHED, MANY)
TARGETS = [load_target(name) for name in ("snapdragon", "dimensity")]
VALUES = (1.5, "x", [1.0, 2.0], [1], 7, -9, ["a", "b"], 10**12)


def parsed(graph):
    model = onnx.parser.parse_model(HEAD + graph)
    for index, node in enumerate(model.graph.node):
        node.name = f"node_{index}"
    return model


def refused(file):
    with pytest.raises(SurgeryError) as caught:
        read_onnx(file)
    return caught.value.diagnostics


def saved(folder, model):
    file = folder / "graph.onnx"
    file.write_bytes(model.SerializeToString())
    return file


@pytest.mark.parametrize("kind", [TensorProto.UNDEFINED, 99])
def test_an_initializer_of_no_type(tmp_path, kind):
    model = parsed(SOFTMAX)
    model.graph.initializer[0].data_type = kind
    assert [fault.code for fault in refused(saved(tmp_path, model))] == ["X121"]


def test_an_initializer_of_words_without_words(tmp_path):
    model = parsed(SOFTMAX)
    model.graph.initializer[0].data_type = TensorProto.STRING
    report = lint_subject(*find_subjects([str(saved(tmp_path, model))]), TARGETS[:1], Depth())[0]
    assert [error.code for error in report.errors] or report.verdict == "rejected"


def test_an_axis_that_is_no_whole_number(tmp_path):
    model = parsed(SOFTMAX)
    del model.graph.node[1].attribute[:]
    model.graph.node[1].attribute.append(helper.make_attribute("axis", 1.0))
    fault = refused(saved(tmp_path, model))[0]
    assert fault.code == "X121"
    assert "axis" in fault.why


def test_a_tensor_that_nothing_makes(tmp_path, capfd):
    model = parsed(SOFTMAX)
    model.graph.node[2].input[0] = "nowhere"
    fault = refused(saved(tmp_path, model))[0]
    assert fault.code == "X121"
    assert "nowhere" in fault.why
    assert capfd.readouterr() == ("", "")


def test_a_size_below_zero_is_one_that_is_not_known(tmp_path):
    model = parsed(RESHAPED)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    report = lint_subject(*find_subjects([str(saved(tmp_path, model))]), TARGETS[:1], Depth())[0]
    assert report.errors == ()
    assert any(f.what.startswith("an input has a dimension without") for f in report.findings)


def outside(location, **more):
    model = parsed(SOFTMAX)
    weight = model.graph.initializer[0]
    weight.ClearField("float_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        weight.external_data.add(key=key, value=value)
    return model


@pytest.mark.parametrize("location", ["../weights.bin", "/dev/zero", "a/../../w", "C:\\w", "..\\w"])
def test_weights_outside_of_the_folder(tmp_path, location):
    (tmp_path / "weights.bin").write_bytes(bytes(64))
    folder = tmp_path / "in"
    folder.mkdir()
    faults = refused(saved(folder, outside(location)))
    assert [fault.code for fault in faults] == ["X113"]
    assert location in faults[0].why


def test_weights_in_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    for location in ("pipe", "device", "folder"):
        faults = refused(saved(tmp_path, outside(location)))
        assert [fault.code for fault in faults] == ["X122"]
        assert "is a folder, a device or a pipe" in faults[0].why


def test_weights_of_a_constant_outside_of_the_folder(tmp_path):
    stored = outside("../w").graph.initializer[0]
    node = helper.make_node("Constant", [], ["k"], value=stored)
    model = parsed(SOFTMAX)
    model.graph.node.insert(0, node)
    assert [fault.code for fault in refused(saved(tmp_path, model))] == ["X113"]


def test_weights_that_begin_before_their_file(tmp_path):
    (tmp_path / "w").write_bytes(bytes(64))
    faults = refused(saved(tmp_path, outside("w", offset="-8")))
    assert [fault.code for fault in faults] in (["X121"], ["X122"])


@pytest.mark.parametrize("name", ["a" * 300 + ".onnx", "pipe.onnx"])
def test_a_name_that_is_no_file(tmp_path, name, monkeypatch, capfd):
    os.mkfifo(tmp_path / "pipe.onnx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["surgery", "lint", name])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 3
    assert "error[X121]" in capfd.readouterr().err


def changed(model, draw):
    """One thing in a graph that isn't what it was."""
    graph, node = model.graph, draw.choice(model.graph.node)
    value = draw.choice(VALUES)
    kind = draw.randrange(9)
    if kind == 0 and graph.initializer:
        draw.choice(graph.initializer).data_type = draw.randrange(26)
    elif kind == 1 and node.attribute:
        name = node.attribute.pop().name
        node.attribute.append(helper.make_attribute(name, value))
    elif kind == 2:
        node.op_type = draw.choice(["Conv", "If", "Loop", "TopK", "Constant", "", "Zzz", "LSTM"])
    elif kind == 3 and node.input:
        node.input[draw.randrange(len(node.input))] = draw.choice(["", "nowhere", "x", "y"])
    elif kind == 4:
        del node.input[:]
    elif kind == 5 and graph.initializer:
        stored = draw.choice(graph.initializer)
        stored.dims[:] = draw.choice([[], [-1], [0], [10**9, 10**9], [3]])
    elif kind == 6:
        shape = draw.choice(graph.input).type.tensor_type.shape
        del shape.dim[:]
        for size in draw.choices([0, -1, 1, 2, 10**10], k=draw.randrange(7)):
            shape.dim.add(dim_value=size)
    elif kind == 7:
        graph.node.append(copy.deepcopy(node))
    else:
        name = draw.choice(["axis", "perm", "to", "value", "equation", "block_size", "dilations"])
        node.attribute.append(helper.make_attribute(name, value))
    return model.SerializeToString()


def damaged(model, draw):
    """Its bytes, of which a few are others, more or less."""
    content = bytearray(model.SerializeToString())
    for _ in range(draw.choice([1, 1, 2, 4])):
        at = draw.randrange(len(content))
        new = bytes(draw.randrange(256) for _ in range(draw.randrange(4)))
        content[at : at + draw.randrange(1, 4)] = new or content[at : at + 1]
    return bytes(content)


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_changed_in_a_file_is_a_report(tmp_path: Path, seed, capfd):
    draw = random.Random(seed)
    file = tmp_path / "graph.onnx"
    for _ in range(50):
        model = parsed(draw.choice(GRAPHS))
        file.write_bytes(draw.choice([changed, damaged])(model, draw))
        for report in lint_subject(*find_subjects([str(file)]), TARGETS, Depth()):
            assert {error.code for error in report.errors} <= {"X113", "X121", "X122"}
            assert report.verdict in ("unknown", "rejected", "warned", "clean")
    assert capfd.readouterr() == ("", "")
