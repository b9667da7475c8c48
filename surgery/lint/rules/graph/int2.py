"""Rule L224: signed two-bit weights."""

from collections.abc import Iterable

from surgery.lint.onnx.live_nodes import LiveGraph
from surgery.lint.rules.graph._node_rule import Fault, NodeRule
from surgery.lint.rules.graph._weights import quantized_weights
from surgery.npu.target import Target


class Int2(NodeRule):
    """Signed int2 weights with one scale a tensor or channel.

    ## Why is it bad?

    The graph compiles, and the emulator computes wrong values.

    ## Example

    `quantize(…, weight_type=QInt2)`, opset 25.

    ## Use instead

    Symmetric int4. Two bits by block, and uint2 by tensor, are right in the emulator.

    ## Evidence

    The compiler's emulator against onnxruntime on the CPU: error 1.3 for outputs of 0.6.
    """

    code = "L224"
    name = "int2"
    evidence = "proved"
    why = "it compiles, and computes wrong values"
    fix = "use symmetric int4"

    def faults(self, graph: LiveGraph, target: Target) -> Iterable[Fault]:
        """Return int2 weights that are not by block; see `NodeRule.faults`."""
        for weight in quantized_weights(graph):
            if weight.stored == "INT2" and weight.granularity != "block":
                yield Fault(weight.node, f"signed int2 weights by {weight.granularity}")
