"""Rule L231: floats that are rounded by a cast and a cast back."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from surgery.lint.onnx.live_nodes import LiveGraph, operator
from surgery.lint.rules.graph._node_rule import Fault, NodeRule
from surgery.npu.target import Target

if TYPE_CHECKING:
    from onnx_ir import Node, Value


class CastRoundTrip(NodeRule):
    """`Cast` of floats to int32 or int64, and straight back to floats.

    ## Why is it bad?

    The two are taken for doing nothing and left out, so that the fraction stays: wrong by up to 1,
    without a word.

    ## Example

    `x.long().float()` to cut off the fraction, as in bins of a position bias.

    ## Use instead

    `Floor` or `Round`; or any work on the integers between the two casts.

    ## Evidence

    The compiler's emulator against onnxruntime on the CPU: wrong for int32 and int64, right with an
    `Add` or a `Reshape` between, and right for booleans.
    """

    code = "L231"
    name = "cast-round-trip"
    evidence = "proved"
    why = "the two casts are left out, and the fraction stays"
    fix = "use `Floor` or `Round`"

    def faults(self, graph: LiveGraph, target: Target) -> Iterable[Fault]:
        """Return each cast to integers that is cast straight back; see `NodeRule.faults`."""
        for node in graph.of("Cast"):
            users = (use.node for use in node.outputs[0].uses())
            back = any(operator(user) == "Cast" and _is_float(user.outputs[0]) for user in users)
            if back and _is_whole(node) and _is_float(node.inputs[0]):
                yield Fault(node, "floats are cast to integers and straight back")


def _is_whole(node: "Node") -> bool:
    dtype = node.outputs[0].dtype
    return dtype is not None and dtype.name in ("INT32", "INT64")


def _is_float(value: "Value | None") -> bool:
    return value is not None and value.dtype is not None and value.dtype.is_floating_point()
