"""Rule L222: weights by block, with activations of eight bits."""

from collections.abc import Iterable

from surgery.lint.onnx.live_nodes import LiveGraph
from surgery.lint.rules.graph._node_rule import Fault, NodeRule
from surgery.lint.rules.graph._weights import quantized_weights
from surgery.npu.target import Target


class Blockwise8bit(NodeRule):
    """Block-wise quantized weights, multiplied with 8-bit activations.

    ## Why is it bad?

    The compiler has no such product, and refuses the graph.

    ## Example

    Int4 weights with one scale for 32 values, in a graph of uint8 activations (W4A8).

    ## Use instead

    uint16 activations (W4A16), with which blocks of 16, 32 and 64 compile and compute right; or
    one scale a channel.

    ## Evidence

    The compiler, for int4, uint4, int8 and uint8.
    """

    code = "L222"
    name = "blockwise-8bit"
    evidence = "proved"
    why = "the compiler has no product of blocks with 8-bit activations"
    fix = "quantize activations to uint16, or weights by channel"

    def faults(self, graph: LiveGraph, target: Target) -> Iterable[Fault]:
        """Return weights in such products; see `NodeRule.faults`."""
        for weight in quantized_weights(graph):
            if weight.granularity == "block" and weight.product and weight.activations == 8:
                kind = weight.stored.lower()
                yield Fault(weight.node, f"{kind} weights by block with 8-bit activations")
