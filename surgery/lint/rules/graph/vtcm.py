"""Rule L226: an operator whose smallest piece of work is too large for the fast memory."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from surgery.lint.onnx.live_nodes import LiveGraph, attribute, dims, operator
from surgery.lint.rules.graph._node_rule import Fault, NodeRule
from surgery.npu.target import Target

if TYPE_CHECKING:
    from onnx_ir import Node

_WHOLE_ROWS: Final = frozenset(
    ("Softmax", "LogSoftmax", "RMSNormalization", "LayerNormalization", "TopK", "ArgMax", "ArgMin")
)
_FP16: Final = 2
_IN_AND_OUT: Final = 2


class Vtcm(NodeRule):
    """One row of an operator that needs whole rows exceeds the tightly coupled memory.

    The compiler splits most work into tiles. A softmax, a norm or a selection over an axis needs
    all of that axis at once, in and out, in fp16.

    ## Why is it bad?

    `requires 0x2400000 bytes of TCM, which is greater than the TCM size of 0x800000!`, and the
    graph is not finalized.

    ## Example

    A softmax over millions of entries.

    ## Use instead

    Split the axis: the greatest and the sum of each chunk, and then of all.

    ## Evidence

    A user's report (pytorch/executorch issue 1430), not reproduced; so it is a warning.
    """

    code = "L226"
    name = "vtcm"
    evidence = "report"
    known_by = "pytorch/executorch issue 1430"
    severity = "warning"
    why = "what an operator needs at once has to fit into the tightly coupled memory"
    fix = "split the axis into chunks"

    def faults(self, graph: LiveGraph, target: Target) -> Iterable[Fault]:
        """Return operators whose row does not fit; see `NodeRule.faults`."""
        limit = target.limits.vtcm_bytes
        if limit is None:
            return
        for node in graph.nodes:
            size = _row(node) * _FP16 * _IN_AND_OUT
            if operator(node) in _WHOLE_ROWS and size > limit.value:
                yield Fault(node, f"a row of `{node.op_type}` takes {size:,} bytes at once")


def _row(node: "Node") -> int:
    sizes = dims(node.inputs[0]) if node.inputs else None
    axis = attribute(node, "axis", -1)
    return (sizes[axis] or 0) if sizes and -len(sizes) <= axis < len(sizes) else 0
