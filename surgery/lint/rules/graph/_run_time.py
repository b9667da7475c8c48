"""What rules share that refuse an argument which is known only at run time."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, ClassVar, Final

from surgery.lint.onnx.live_nodes import LiveGraph, dims, given, is_static, operator
from surgery.lint.rules.graph._node_rule import Fault, NodeRule
from surgery.npu.target import Target

if TYPE_CHECKING:
    from onnx_ir import Node, Value

ARGUMENTS: Final[dict[str, dict[int, str]]] = {
    "TopK": {1: "k"},
    "Slice": {1: "starts", 2: "ends", 3: "axes", 4: "steps"},
    "Expand": {1: "shape"},
    "Range": {0: "start", 1: "limit", 2: "delta"},
    "Reshape": {1: "shape"},
    "Tile": {1: "repeats"},
    "Pad": {1: "pads"},
    "Split": {1: "split"},
    "CumSum": {1: "axis"},
    "Clip": {1: "min", 2: "max"},
    "Resize": {2: "scales", 3: "sizes"},
    "Squeeze": {1: "axes"},
    "Unsqueeze": {1: "axes"},
    "OneHot": {1: "depth"},
    "QuantizeLinear": {1: "scale", 2: "zero_point"},
    "DequantizeLinear": {1: "scale", 2: "zero_point"},
    "QLinearMatMul": {1: "a_scale", 4: "b_scale", 6: "y_scale"},
    "QLinearConv": {1: "x_scale", 4: "w_scale", 6: "y_scale"},
    "BatchNormalization": {1: "scale", 2: "B", 3: "mean", 4: "var"},
    "GRU": {4: "sequence_lens"},
    "LSTM": {4: "sequence_lens"},
    "ReduceL2": {1: "axes"},
    "ReduceMax": {1: "axes"},
    "ReduceMean": {1: "axes"},
    "ReduceMin": {1: "axes"},
    "ReduceSum": {1: "axes"},
}
"""Inputs that the HTP compiler must know beforehand, by operator."""
_VIEWS: Final = frozenset(("Reshape", "Squeeze", "Unsqueeze"))
"""What the annotated size of the output says in full."""


class RunTimeRule(NodeRule):
    """Finds operators of a set whose listed inputs are not constants."""

    operators: ClassVar[tuple[str, ...]]
    """Which of `ARGUMENTS`."""

    evidence = "proved"
    fix = "make it a constant of the graph, and export a graph for each value that is needed"

    def faults(self, graph: LiveGraph, target: Target) -> Iterable[Fault]:
        """Return nodes with such an input; see `NodeRule.faults`."""
        for node in graph.of(*self.operators):
            name = operator(node)
            open_ = [word for word, value in _arguments(node) if value not in graph.constants]
            if open_ and not (name in _VIEWS and is_static(node.outputs[0])):
                yield Fault(node, f"`{name}` takes `{', '.join(open_)}` at run time")


def _arguments(node: "Node") -> Iterator[tuple[str, "Value"]]:
    """The name and value of each that is given and not empty."""
    for index, word in ARGUMENTS[operator(node)].items():
        value = given(node, index)
        if value is not None and 0 not in (dims(value) or ()):
            yield word, value
