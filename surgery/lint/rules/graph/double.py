"""Rule L214: double precision."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from surgery.lint.onnx.live_nodes import LiveGraph
from surgery.lint.rules.graph._node_rule import Fault, NodeRule
from surgery.npu.target import Target

if TYPE_CHECKING:
    from onnx_ir import Value


class Double(NodeRule):
    """Tensors in double precision.

    ## Why is it bad?

    The NPU has no arithmetic in 64 bits. As an input or output of the graph it is refused:
    `Unsupported FP64 data type in graph IO.` In between it compiles, and is computed in less
    precision than is asked for: a warning.

    ## Example

    A rotary table in `float64`, as an input.

    ## Use instead

    `float32`: in torch `.float()` before the export. What needs 64 bits is computed outside.

    ## Evidence

    The compiler, for inputs, outputs and ten operators in between.
    """

    code = "L214"
    name = "double"
    evidence = "proved"
    compilers = ("htp", "none")
    why = "the NPU does not compute in 64 bits"
    fix = "cast to float32 before the export"

    def faults(self, graph: LiveGraph, target: Target) -> Iterable[Fault]:
        """Return inputs, outputs and nodes in double; see `NodeRule.faults`."""
        fact = target.types.get("fp64")
        if fact is None or fact.value:
            return
        for value in graph.inputs:
            if _is_double(value):
                yield Fault(value, "an input of the graph is in double precision", fact=fact)
        for node in graph.nodes:
            if any(_is_double(out) and out.is_graph_output() for out in node.outputs):
                yield Fault(node, "an output of the graph is in double precision", fact=fact)
            elif any(map(_is_double, node.outputs)):
                what = "computed in less than the double precision that it asks for"
                yield Fault(node, what, severity="warning", fact=fact)


def _is_double(value: "Value | None") -> bool:
    from onnx_ir import DataType

    return value is not None and value.dtype == DataType.DOUBLE
