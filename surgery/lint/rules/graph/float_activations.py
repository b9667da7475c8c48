"""Rule L223: weights by channel that nothing quantized takes."""

from collections.abc import Iterable

from surgery.lint.onnx.live_nodes import LiveGraph
from surgery.lint.rules.graph._node_rule import Fault, NodeRule
from surgery.lint.rules.graph._weights import QuantizedWeight, quantized_weights
from surgery.npu.target import Target


class FloatActivations(NodeRule):
    """Weights quantized by channel or block, which are turned into floats before they are used.

    ## Why is it bad?

    The compiler knows such weights only as part of a quantized product or convolution. By
    itself, `DequantizeLinear` is refused: `QNN EP does not support a standalone DQ op with
    per-channel quantization`. With one scale a tensor it compiles, and the weights are stored
    as fp16.

    ## Example

    Weight-only int4 by channel with fp16 activations; an embedding table by channel; weights by
    block behind a `Transpose`.

    ## Use instead

    Quantize activations too (W4A16, W8A16); `MatMulNBits` for weight-only int4 by block; one
    scale for an embedding table; store a block-wise weight as it is multiplied.

    ## Evidence

    The compiler, for `MatMul`, `Gemm`, `Conv`, `Gather`, and `Transpose` between.
    """

    code = "L223"
    name = "float-activations"
    evidence = "proved"
    why = "`DequantizeLinear` by channel or block is taken as part of a quantized product only"
    fix = "quantize the activations too, or use one scale for the complete tensor"

    def faults(self, graph: LiveGraph, target: Target) -> Iterable[Fault]:
        """Return weights that nothing quantized takes; see `NodeRule.faults`."""
        for weight in quantized_weights(graph):
            if weight.granularity != "tensor" and not _is_taken(weight):
                what = f"{weight.stored.lower()} weights by {weight.granularity}, used as floats"
                yield Fault(weight.node, what)


def _is_taken(weight: QuantizedWeight) -> bool:
    whole = not (weight.transposed and weight.granularity == "block")
    return whole and weight.product and weight.activations > 0
