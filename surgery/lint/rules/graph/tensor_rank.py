"""Rule L213: tensors of more dimensions than the NPU has."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from surgery.lint.onnx.live_nodes import LiveGraph, attribute, dims, given, operator
from surgery.lint.rules.graph._node_rule import Fault, NodeRule
from surgery.npu.target import Target

if TYPE_CHECKING:
    from onnx_ir import Node, Value

_UNSHUFFLES: Final = ((0, 1, 3, 5, 2, 4), (0, 3, 5, 1, 2, 4))
"""The two transposes of `SpaceToDepth`, which alone of all 120 are refused."""


class TensorRank(NodeRule):
    """A tensor has more dimensions than the NPU computes with.

    ## Why is it bad?

    Every node that touches it is refused: `QNN.backendValidateOpConfig() failed … with error
    code 3110`, in the trace `Failed to add node.`

    ## Example

    `repeat_kv` on a batch of images: `Expand` to (batch, images, heads, groups, tokens, dim).

    ## Use instead

    Fold dimensions that are not used at that moment into one: (batch * images, …). `Reshape`,
    `Transpose`, `Reshape` over six dimensions compiles where one of the six is 1 and the
    transpose leaves it in its place; but not a pixel unshuffle, which is written as
    `SpaceToDepth`.

    ## Evidence

    The compiler, for six dimensions, fifteen operators and all 120 transposes that keep the
    first.
    """

    code = "L213"
    name = "tensor-rank"
    evidence = "proved"
    compilers = ("htp", "none")
    why = "the NPU's operators are defined up to that number"
    fix = "fold dimensions into one before, and unfold them after"

    def faults(self, graph: LiveGraph, target: Target) -> Iterable[Fault]:
        """Return nodes with such an input or output; see `NodeRule.faults`."""
        limit = target.limits.rank
        if limit is None:
            return
        for node in graph.nodes:
            most = max(map(_rank, (*node.inputs, *node.outputs)), default=0)
            if most > limit.value and not _is_shuffle(node, limit.value + 1):
                what = f"a tensor of {most} dimensions, {limit.value} are the most"
                yield Fault(node, what, fact=limit)


def _rank(value: "Value | None") -> int:
    return len(dims(value) or ())


def _is_shuffle(node: "Node", rank: int) -> bool:
    """Whether a node is part of a reshape, transpose, reshape that the compiler takes as one."""
    middle = _transpose(node)
    if middle is None or _rank(middle.inputs[0]) != rank:
        return False
    before = middle.inputs[0].producer() if middle.inputs[0] else None
    after = [use.node for use in middle.outputs[0].uses()]
    around = [before, *after]
    if len(around) != 2 or any(n is None or operator(n) != "Reshape" for n in around):
        return False
    return _keeps_a_one(middle) and _rank(given(after[0], 0)) == rank


def _transpose(node: "Node") -> "Node | None":
    if operator(node) == "Transpose":
        return node
    if operator(node) != "Reshape":
        return None
    maker = node.inputs[0].producer() if node.inputs[0] else None
    near = [maker, *(use.node for use in node.outputs[0].uses())]
    return next((n for n in near if n is not None and operator(n) == "Transpose"), None)


def _keeps_a_one(node: "Node") -> bool:
    sizes = dims(node.inputs[0]) or ()
    order = tuple(attribute(node, "perm", range(len(sizes))[::-1]))
    if order in _UNSHUFFLES:
        return False
    return any(size == 1 and order[axis] == axis for axis, size in enumerate(sizes))
