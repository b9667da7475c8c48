"""Rule L219: experts' weights by GatherND."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from surgery.lint.onnx.live_nodes import LiveGraph, attribute, dims, given
from surgery.lint.rules.graph._node_rule import Fault, NodeRule
from surgery.npu.target import Target

if TYPE_CHECKING:
    from onnx_ir import Node

_MOST_PLACES: Final = 8
_MOST_ROWS: Final = 128


class ExpertGathernd(NodeRule):
    """`GatherND` takes whole matrices, such as the weights of the experts that were chosen.

    It goes wrong for more than 8 matrices, or for matrices of more than 128 rows.

    ## Why is it bad?

    It compiles. Run, it reads outside of its input (`gather_nd.cc … access data out-of-bound of
    input!`), gives wrong values, or ends the process.

    ## Example

    `batched_mm` experts of transformers: `weights[chosen]` of (experts, out, in), then `bmm`.

    ## Use instead

    `Gather` with `axis = 0`, which gives the same and computes right:
    `torch.index_select(weights, 0, chosen)`. All experts are resident nevertheless.

    ## Evidence

    The compiler's emulator against onnxruntime on the CPU, for 180 shapes; `GatherND` of rows,
    and `Gather` of matrices, were right for every one.
    """

    code = "L219"
    name = "expert-gathernd"
    evidence = "proved"
    why = "it compiles, and then reads outside of its input, or computes wrong values"
    fix = "use `Gather` with axis 0: `torch.index_select(weights, 0, chosen)`"

    def faults(self, graph: LiveGraph, target: Target) -> Iterable[Fault]:
        """Return each `GatherND` of too many or too high matrices; see `NodeRule.faults`."""
        for node in graph.of("GatherND"):
            if _is_wrong(node):
                yield Fault(node, "`GatherND` takes whole matrices")


def _is_wrong(node: "Node") -> bool:
    data, places = dims(given(node, 0)), dims(given(node, 1))
    if not data or not places or None in data or None in places:
        return False
    depth = (places[-1] or 0) + attribute(node, "batch_dims", 0)
    taken = data[depth:]
    count = 1
    for size in places[:-1]:
        count *= size or 0
    return len(taken) >= 2 and (count > _MOST_PLACES or (taken[-2] or 0) > _MOST_ROWS)
