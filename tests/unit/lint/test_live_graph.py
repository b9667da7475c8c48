"""What of a graph a device must run, and how findings on it are joined and placed."""

import onnx_ir
import pytest
from clock import growth
from onnx_ir.passes.common import ShapeInferencePass

from surgery.lint.base import GraphSubject, known_rules
from surgery.lint.onnx.live_nodes import live_graph
from surgery.lint.rule_runner import lint_graph
from surgery.npu.target import load_target

HEAD = '<ir_version: 10, opset_import: ["" : 23, "mine" : 1]>\n'
LIVE = {
    "constants are folded": (
        "g (float[2] x) => (float[2] y) <float[2] a = {1, 2}> "
        "{ b = Neg(a) c = Exp(b) y = Add(x, c) }",
        ["Add"],
    ),
    "a shape of fixed size is folded": (
        "g (float[2] x) => (int64[1] y) { s = Shape(x) t = Neg(s) y = Abs(t) }",
        [],
    ),
    "a shape of open size is not": (
        "g (float[n] x) => (int64[1] y) { s = Shape(x) y = Abs(s) }",
        ["Shape", "Abs"],
    ),
    "random numbers are not constants": (
        "g (float[2] x) => (float[2] y) { r = RandomNormal <shape = [2]> () y = Add(x, r) }",
        ["RandomNormal", "Add"],
    ),
    "quantized weights stay": (
        "g (float[2] x) => (float[2] y) <int8[2] w = {1, 2}, float s = {0.1}> "
        "{ d = DequantizeLinear(w, s) y = Mul(x, d) }",
        ["DequantizeLinear", "Mul"],
    ),
    "both branches are walked": (
        "g (float[2] x, bool c) => (float[2] y) { y = If (c) <then_branch = t () => (float[2] a) "
        "{ a = Neg(x) }, else_branch = e () => (float[2] b) { b = Exp(x) }> }",
        ["If", "Neg", "Exp"],
    ),
    "identities pass": (
        "g (float[2] x) => (float[2] y) { i = Identity(x) d = Dropout(i) y = Neg(d) }",
        ["Neg"],
    ),
    "functions are walked in place of their calls": (
        "g (float[2] x) => (float[2] y) { y = mine.f(x) }\n"
        '<domain: "mine", opset_import: ["" : 23]>\n'
        "f (a) => (b) { b = Erf(a) }",
        ["Erf"],
    ),
    "what may be given anew is no constant": (
        "g (float[2] x, float[2] w = {1, 2}) => (float[2] y) { v = Neg(w) y = Add(x, v) }",
        ["Neg", "Add"],
    ),
}


def model_of(text):
    return onnx_ir.from_onnx_text(HEAD + text)


def findings(model, key=""):
    subject = GraphSubject(model, lambda node: f"model.layers.{node.name}", key)
    return list(lint_graph(subject, load_target("snapdragon")))


@pytest.mark.parametrize(("text", "operators"), LIVE.values(), ids=LIVE)
def test_live_nodes(text, operators):
    assert [node.op_type for node in live_graph(model_of(text)).nodes] == operators


def chain(count, body):
    """`count` times `body`, in which {i} and {o} are what goes in and out."""
    steps = (body.format(i=f"h{n}", o=f"h{n + 1}", n=n) for n in range(count))
    text = f"g (float[2, 64] h0) => (float[2, 64] h{count}) {{ {' '.join(steps)} }}"
    model = ShapeInferencePass()(model_of(text)).model
    for number, node in enumerate(model.graph):
        node.name = str(number)
    return model


def test_what_is_alike_is_one_finding_with_three_names():
    found = findings(chain(5, "{o} = Erf({i})"), key="operations.experts")
    assert [f.rule for f in found] == ["unsupported-operator"]
    names = "model.layers.0, model.layers.1, model.layers.2 and 2 more"
    assert found[0].what == f"no operator `Erf` on the NPU (5 times: {names})"
    assert found[0].module == "model.layers.0"
    assert found[0].key == "operations.experts"


def test_one_fault_is_told_by_its_module_alone():
    found = findings(chain(1, "{o} = Erf({i})"))
    assert found[0].what == "no operator `Erf` on the NPU"
    assert str(found[0]).count("model.layers.0") == 1


def test_where_there_is_no_compiler_its_word_does_not_hold():
    target = load_target("snapdragon")
    subject = GraphSubject(chain(1, "{o} = Erf({i})"), lambda node: node.op_type)
    codes = {f.code for f in lint_graph(subject, target)}
    elsewhere = target.model_copy(update={"compiler": "none"})
    assert codes == {"L202"}
    assert {f.code for f in lint_graph(subject, elsewhere)} == set()


def test_a_weight_without_numbers_is_looked_at():
    model = chain(1, "{o} = Mul({i}, {i})")
    weight = onnx_ir.Value(
        name="w", shape=onnx_ir.Shape([2, 64]), type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT)
    )
    model.graph.initializers.add(weight)
    model.graph[0].replace_input_with(1, weight)
    assert findings(model) == []


def test_rules_are_quick_on_a_whole_decoder():
    body = "a{n} = Mul({i}, {i}) b{n} = Softmax(a{n}) c{n} = Cast <to = 10> (b{n}) "
    body += "d{n} = Add(c{n}, c{n}) e{n} = Cast <to = 1> (d{n}) f{n} = Tanh(e{n}) "
    body += "g{n} = Sigmoid(f{n}) {o} = Add(g{n}, a{n})"
    models = {blocks: chain(blocks, body) for blocks in (62, 500)}
    assert len(models[500].graph) >= 4000
    # eight times the nodes; squared, it would be 64 times
    assert growth(lambda blocks: findings(models[blocks]), 62, 500) < 24


def test_names_and_codes_are_one_each():
    rules = known_rules()
    assert len({rule.code for rule in rules.values()}) == len(rules)
    assert all(name == name.lower() and " " not in name for name in rules)
