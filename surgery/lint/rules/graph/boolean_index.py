"""Rule L204: rows that are taken by a mask."""

from collections.abc import Iterable

from surgery.lint.onnx.live_nodes import LiveGraph
from surgery.lint.rules.graph._node_rule import Fault, NodeRule
from surgery.lint.rules.graph._selection import is_padded, taker
from surgery.npu.target import Target


class BooleanIndex(NodeRule):
    """Rows are taken or put by a boolean mask.

    Finds `x[mask]` and `y[mask] = …` in the form that torch exports: `NonZero` of the mask
    whose positions `Gather`, `GatherND` or `ScatterND` take. CogVLM's original visual expert is of
    this kind.

    ## Why is it bad?

    The number of rows depends on the data. The compiler refuses `NonZero` and all that follows:
    of 142 nodes of a two-block decoder written so, 48 stayed on the CPU, in three parts.

    ## Example

    ```
    g (float[16, 64] x, bool[16] image) => (float[N, 64] y) {
        positions = NonZero(image)
        columns = Transpose <perm = [1, 0]> (positions)
        y = GatherND(x, columns)
    }
    ```

    ## Use instead

    `form: blend` of the operation `expert`: both weight sets on all rows, and `Where` picks. Or
    `form: segments`, where the image's rows stand at a fixed position.

    ## Evidence

    The compiler, which refused it; the same decoder with `Where` is one graph on the NPU, and
    its cosine with torch is 0.999998.
    """

    code = "L204"
    name = "boolean-index"
    evidence = "proved"
    why = "the number of rows depends on the data, and the compiler wants every size beforehand"
    fix = "`form: blend` or `form: segments` in the recipe; in other code `torch.where`"

    def faults(self, graph: LiveGraph, target: Target) -> Iterable[Fault]:
        """Return each `NonZero` whose positions index rows; see `NodeRule.faults`."""
        for node in graph.of("NonZero"):
            user = taker(node)
            if user is not None and not is_padded(node):
                yield Fault(node, f"a boolean mask picks rows: `NonZero` and `{user.op_type}`")
