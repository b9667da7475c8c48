"""Rule L221: an offset for each channel or block of a weight."""

from collections.abc import Iterable
from typing import Final

from surgery.lint.onnx.live_nodes import LiveGraph
from surgery.lint.rules.graph._node_rule import Fault, NodeRule
from surgery.lint.rules.graph._weights import QuantizedWeight, quantized_weights
from surgery.npu.target import Target

_SYMMETRIC: Final = {"INT2": 0, "INT4": 0, "INT8": 0, "UINT8": 128}
"""The one zero point with which weights by channel are taken; uint4 has none."""


class AsymmetricChannels(NodeRule):
    """Weights with one scale a channel or block, whose zero points are off the middle.

    ## Why is it bad?

    By channel, the NPU has symmetric weights only: the compiler refuses int4 and int8 with a
    zero point other than 0, uint8 with one other than 128, and uint4 altogether. By block it
    compiles, and every zero point other than 0 gives wrong values.

    ## Example

    `quantize(…, per_channel=True)` with `QUInt4` weights.

    ## Use instead

    Symmetric int4 or int8, with a zero point of zero.

    ## Evidence

    The compiler, for 36 pairs of type and zero point; its emulator for those that compile.
    """

    code = "L221"
    name = "asymmetric-channels"
    evidence = "proved"
    fix = "quantize symmetrically: int4 or int8 with a zero point of zero"

    def faults(self, graph: LiveGraph, target: Target) -> Iterable[Fault]:
        """Return weights that are refused or come out wrong; see `NodeRule.faults`."""
        for weight in quantized_weights(graph):
            if not weight.product or not weight.activations:
                continue
            kind = weight.stored.lower()
            if weight.granularity == "channel" and not _is_symmetric(weight):
                what = f"{kind} weights by channel with zero points off the middle"
                yield Fault(weight.node, what, "by channel, the NPU has symmetric weights only")
            elif weight.granularity == "block" and weight.zeros - {0}:
                what = f"{kind} weights by block with zero points that are not zero"
                yield Fault(weight.node, what, "it compiles, and computes wrong values")


def _is_symmetric(weight: QuantizedWeight) -> bool:
    middle = _SYMMETRIC.get(weight.stored)
    return (weight.zeros or {0}) == {middle}
