"""Rule L230: tensors without a single number."""

from collections.abc import Iterable

from surgery.lint.onnx.live_nodes import LiveGraph, dims
from surgery.lint.rules.graph._node_rule import Fault, NodeRule
from surgery.npu.target import Target


class EmptyTensor(NodeRule):
    """A node gives a tensor of which one dimension is zero.

    ## Why is it bad?

    The compiler has no empty tensors, and refuses the node: `Failed to add node.`

    ## Example

    The part of a head that a rotary embedding leaves alone, where it leaves nothing: `Split`
    into (head, 0). A cache of no tokens, in a graph for prefill that was exported as one for
    decode.

    ## Use instead

    Leave the empty part out before the export.

    ## Evidence

    The compiler, for `Split` and `Slice`.
    """

    code = "L230"
    name = "empty-tensor"
    evidence = "proved"
    why = "the compiler has no tensors without values"
    fix = "leave the empty part out before the export"

    def faults(self, graph: LiveGraph, target: Target) -> Iterable[Fault]:
        """Return nodes that give one; see `NodeRule.faults`."""
        for node in graph.nodes:
            if any(0 in (dims(out) or ()) for out in node.outputs):
                yield Fault(node, f"the output of `{node.op_type}` is empty")
