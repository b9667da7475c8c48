"""Rule L203: the positions where a tensor is not zero."""

from collections.abc import Iterable

from surgery.lint.onnx.live_nodes import LiveGraph
from surgery.lint.rules.graph._node_rule import Fault, NodeRule
from surgery.lint.rules.graph._selection import is_padded, taker
from surgery.npu.target import Target


class Nonzero(NodeRule):
    """`NonZero` gives as many positions as there are.

    Finds `NonZero`. With a size annotated for its output it is a warning.

    ## Why is it bad?

    How many positions come out depends on the data, so the output has no fixed size. The compiler
    refuses the node: `NonZero output shape must be static. Set shape to [rank, num_elements].`
    With such an annotation it compiles, and fills the positions that are left over with -1, which
    is not what ONNX says and what another runtime gives.

    ## Example

    ```
    g (float[4, 8] x) => (int64[2, N] positions) { positions = NonZero(x) }
    ```

    ## Use instead

    `Where` with the mask itself: it computes both sides and picks, with fixed sizes.

    ## Evidence

    The compiler, which refused it; with an annotated size it compiles, padded with -1.
    """

    code = "L203"
    name = "nonzero"
    evidence = "proved"

    def faults(self, graph: LiveGraph, target: Target) -> Iterable[Fault]:
        """Return every `NonZero` that no boolean index explains; see `NodeRule.faults`."""
        for node in graph.of("NonZero"):
            if is_padded(node):
                what = "`NonZero` fills the positions that are left over with -1"
                why = "its annotated size is static; other runtimes give as many as there are"
                fix = "drop -1 from the positions before they are used, or use `Where` and the mask"
                yield Fault(node, what, why, fix, severity="warning")
            elif taker(node) is None:
                why = "the compiler says `NonZero output shape must be static`"
                fix = "use `Where` with the mask itself"
                yield Fault(node, "the size of `NonZero` depends on the data", why, fix)
