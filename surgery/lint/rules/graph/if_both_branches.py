"""Rule L225: a condition whose both sides run."""

from collections.abc import Iterable

from surgery.lint.onnx.live_nodes import LiveGraph
from surgery.lint.rules.graph._node_rule import Fault, NodeRule
from surgery.npu.target import Target


class IfBothBranches(NodeRule):
    """`If` with a condition that is known only at run time.

    ## Why is it bad?

    The compiler lowers it to both branches and a selection of the result. Both always run, and
    the weights of both are resident: nothing is saved.

    ## Example

    A block that chooses between its text and its image weights by a flag.

    ## Use instead

    Two graphs, one for each path, which the app chooses between for a whole request.

    ## Evidence

    The compiler's own map of the graph: both branches and `ElementWiseSelect`. Qualcomm's pages
    still say that `If` is not supported.
    """

    code = "L225"
    name = "if-both-branches"
    evidence = "proved"
    severity = "warning"
    why = "it becomes both branches and a selection, and both sets of weights are resident"
    fix = "export one graph for each branch, and choose between them outside"

    def faults(self, graph: LiveGraph, target: Target) -> Iterable[Fault]:
        """Return each `If` that is not settled beforehand; see `NodeRule.faults`."""
        for node in graph.of("If"):
            if node.inputs[0] not in graph.constants:
                yield Fault(node, "both branches of `If` run, whatever its condition is")
