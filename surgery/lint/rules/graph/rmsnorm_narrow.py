"""Rule L218: RMSNorm over rows that are too narrow."""

from collections.abc import Iterable
from typing import Final

from surgery.lint.onnx.live_nodes import LiveGraph, dims, operator
from surgery.lint.rules.graph._node_rule import Fault, NodeRule
from surgery.npu.target import Target

_OPERATORS: Final = ("RMSNormalization", "SimplifiedLayerNormalization")
_NARROW: Final = 32


class RmsnormNarrow(NodeRule):
    """`RMSNormalization` over at most 32 values, on a tensor of three or four dimensions.

    Whether it comes out wrong depends on the two dimensions before the last, height and width:
    wrong for a height of 9 to 12, above that up to a width of 8, and for a height of 2 to 7
    where the width is a multiple of 8 from 16 on.

    ## Why is it bad?

    It compiles, and computes wrong values in the emulator, by up to the size of the values
    themselves or far more. Nothing warns of it. Whether the chip does the same is not known.

    ## Example

    The norm of queries with a head dimension of 32: (1, heads, tokens, 32).

    ## Use instead

    Reshape to two dimensions (rows, 32) before, and back after; (1, rows, 32) is right as well.
    Three dimensions alone are not enough: (heads, tokens, 32) goes wrong too.

    ## Evidence

    The compiler's emulator against onnxruntime on the CPU, for 800 shapes on SM8750; the
    fixture's on all four.
    """

    code = "L218"
    name = "rmsnorm-narrow"
    evidence = "proved"
    why = "it compiles, and the emulator computes wrong values without a word"
    fix = "reshape to (rows, width) before the norm, and back after it"

    def faults(self, graph: LiveGraph, target: Target) -> Iterable[Fault]:
        """Return norms of a shape that goes wrong; see `NodeRule.faults`."""
        for node in graph.nodes:
            sizes = dims(node.inputs[0]) if operator(node) in _OPERATORS else None
            if sizes and len(sizes) >= 3 and _is_wrong(*sizes[-3:]):
                shape = ", ".join(map(str, sizes))
                yield Fault(node, f"RMSNorm over {sizes[-1]} values of a tensor ({shape})")


def _is_wrong(height: int | None, width: int | None, size: int | None) -> bool:
    if height is None or width is None or size is None or size > _NARROW:
        return False
    if height > 8:
        return height <= 12 or width <= 8
    return 1 < height < 8 and width >= 16 and width % 8 == 0
