"""Rule L227: a graph that is too large for one compiled part."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from surgery.diagnostics.finding import Finding
from surgery.lint.base import GraphRule, GraphSubject
from surgery.npu.target import Target

if TYPE_CHECKING:
    from onnx_ir import Model, Value

_FP16: Final = 2
_FLOATS: Final = frozenset(("FLOAT", "DOUBLE"))


class GraphSize(GraphRule):
    """The weights of one graph exceed what one compiled graph may hold.

    Floats count as fp16, which they become; the rest as it is stored.

    ## Why is it bad?

    The compiler refuses to write it: `graph requires estimated allocation of 2741569 KB, limit
    is 2097152 KB`, code 1002.

    ## Example

    36 blocks of a 3B decoder in fp16 as one ONNX file.

    ## Use instead

    Several graphs of a few blocks each, as `surgery export` writes; or W4A16.

    ## Evidence

    A user's report for an older version of the compiler (qualcomm/ai-hub-models issue 274); the
    target's fact says which.
    """

    code = "L227"
    name = "graph-size"
    evidence = "report"
    known_by = "qualcomm/ai-hub-models issue 274, 2025-11"

    def check(self, subject: GraphSubject, target: Target) -> Iterable[Finding]:
        """See `GraphRule.check`."""
        limit = target.limits.graph_bytes
        size = _bytes(subject.model)
        if limit is not None and size > limit.value:
            yield self.finding(
                target,
                f"the weights of the graph take {size:,} bytes, {limit.value:,} are the most",
                why="the compiler refuses a graph that is larger",
                fix="export a graph for every few blocks, or quantize",
                key=subject.key,
                fact=limit,
            )


def _bytes(model: "Model") -> int:
    return sum(_stored(v) for graph in model.graphs() for v in graph.initializers.values())


def _stored(value: "Value") -> int:
    if value.dtype is None or value.shape is None or not value.shape.is_static():
        return 0
    count = 1
    for size in value.shape.numpy():
        count *= size
    return int(count * (_FP16 if value.dtype.name in _FLOATS else value.dtype.itemsize))
