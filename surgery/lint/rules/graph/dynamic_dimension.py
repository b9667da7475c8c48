"""Rule L201: a tensor whose size is not known before the graph runs."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from surgery.lint.onnx.live_nodes import STANDARD, LiveGraph, dims, is_static
from surgery.lint.rules.graph._node_rule import Fault, NodeRule
from surgery.lint.rules.graph._run_time import ARGUMENTS
from surgery.npu.target import Target

if TYPE_CHECKING:
    from onnx_ir import Node

_EXPLAINED: Final = frozenset(("NonZero", "Compress", "Unique", "Loop", "Scan", *ARGUMENTS))
"""Operators whose own rule says more."""


class DynamicDimension(NodeRule):
    """A dimension of a tensor has no fixed size.

    Finds inputs of the graph with a symbolic or unknown dimension, and nodes that make one out
    of inputs whose sizes are all fixed.

    ## Why is it bad?

    The HTP compiler lays out every tensor before it runs. It refuses each node that such a size
    reaches with `Cannot get shape`, and a strict compile fails.

    ## Example

    ```
    g (float[tokens, 4] x) => (float[tokens, 4] y) { y = Relu(x) }
    ```

    ## Use instead

    A graph for each size that is needed: one of a whole chunk for the prompt, one of a single
    token for generation, both with a key-value cache of a fixed window. `surgery export` writes
    these.

    ## Evidence

    The compiler, which refused it. A symbolic size of an output alone does no harm where the
    real one can be inferred, and is not reported.
    """

    code = "L201"
    name = "dynamic-dimension"
    evidence = "proved"
    why = "the compiler lays out each tensor beforehand, and says `Cannot get shape`"
    fix = "export with static shapes: a graph for prefill and one for decode, with a fixed window"

    def faults(self, graph: LiveGraph, target: Target) -> Iterable[Fault]:
        """Return graph inputs and nodes at which an unknown size begins; see `NodeRule.faults`."""
        for value in graph.inputs:
            if not is_static(value):
                yield Fault(value, "an input has a dimension without a fixed size")
        for node in graph.nodes:
            if _begins(node):
                yield Fault(node, f"the output of `{node.op_type}` has no fixed size")


def _begins(node: "Node") -> bool:
    """Sizes come in fixed and go out open; no word on operators whose shapes no one infers."""
    if node.domain not in STANDARD or node.op_type in _EXPLAINED:
        return False
    made = [dims(out) for out in node.outputs]
    if not any(known is not None and None in known for known in made):
        return False
    return all(value is None or is_static(value) for value in node.inputs)
