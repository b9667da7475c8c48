"""Rule L220: signed four-bit weights with an offset."""

from collections.abc import Iterable

from surgery.lint.onnx.live_nodes import LiveGraph
from surgery.lint.rules.graph._node_rule import Fault, NodeRule
from surgery.lint.rules.graph._weights import QuantizedWeight, quantized_weights
from surgery.npu.target import Target


class AsymmetricInt4(NodeRule):
    """Signed int4 weights, one scale a tensor or channel, whose zero point is not a written zero.

    ## Why is it bad?

    The graph compiles, and the NPU's emulator ignores the offset: wrong values without a word.
    A decoder lost cosine down to 0.874, and agreed on 31% of the tokens. It is the default of
    onnxruntime's `get_qnn_qdq_config` for `QInt4`. Where the zero point is left out, which ONNX
    defines as zero, the values are wrong too.

    ## Example

    ```
    weight = DequantizeLinear(stored, scale, three)
    y = MatMul(x, weight)
    ```

    ## Use instead

    Symmetric int4 with a zero point of zero: `weight_symmetric=True` in `get_qnn_qdq_config`.
    Or uint4, one scale a tensor, with any zero point.

    ## Evidence

    The compiler's emulator against onnxruntime on the CPU: error 20 for outputs of 2.5 with an
    offset of 1, 4.9 without a zero point, 0.002 with a written zero.
    """

    code = "L220"
    name = "asymmetric-int4"
    evidence = "proved"
    fix = "quantize symmetrically: `weight_symmetric=True`, with a zero point of zero"

    def faults(self, graph: LiveGraph, target: Target) -> Iterable[Fault]:
        """Return weights that come out wrong; see `NodeRule.faults`."""
        for weight in quantized_weights(graph):
            if weight.stored != "INT4" or weight.granularity == "block":
                continue
            if not weight.zeros:
                what = "signed int4 weights without a zero point"
                yield Fault(weight.node, what, "the emulator takes another zero than ONNX does")
            elif _is_offset(weight):
                what = "signed int4 weights with a zero point that is not zero"
                yield Fault(weight.node, what, "it compiles, and the offset is ignored")


def _is_offset(weight: QuantizedWeight) -> bool:
    offset = weight.granularity == "tensor" and weight.zeros != {0}
    return offset and weight.product and weight.activations > 0
