"""Rule L217: the RMSNorm that can't be finalized."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from surgery.lint.onnx.live_nodes import (
    LiveGraph,
    attribute,
    constant_values,
    dims,
    given,
    operator,
)
from surgery.lint.rules.graph._node_rule import Fault, NodeRule
from surgery.npu.target import Target

if TYPE_CHECKING:
    from onnx_ir import Node, Value


class RmsnormDecomposed(NodeRule):
    """RMSNorm written out as `weight * (x * (1 / sqrt(mean(x ^ 2) + eps)))` in float32.

    Only this form, with the operands in this order. It is what torch exports of most decoders
    of transformers below opset 23.

    ## Why is it bad?

    Each node is taken by itself, and then the complete graph fails: `Failed to finalize QNN graph.
    Error: QNN_COMMON_ERROR_MEM_ALLOC … Code: 1002`. Nothing in the message points at the norm.
    With one number for a row it compiles, and computes wrong values.

    ## Example

    ```
    square = Pow(x, two)
    mean = ReduceMean(square, axis)
    shifted = Add(mean, eps)
    root = Sqrt(shifted)
    inverse = Reciprocal(root)
    normed = Mul(x, inverse)
    y = Mul(weight, normed)
    ```

    ## Use instead

    The operator `RMSNormalization` (opset 23): `torch.nn.functional.rms_norm` in the model.
    Lint and `surgery export` put it in the place of every norm that they know. `normed *
    weight`, `x * x` for the power, and `Div` for the reciprocal compile as well.

    ## Evidence

    The compiler, for all 72 combinations of power, root, order and rank; on soc 69, 57, 43 and
    87.
    """

    code = "L217"
    name = "rmsnorm-decomposed"
    evidence = "proved"
    why = "each node is taken, and then the graph fails: `Failed to finalize QNN graph`, code 1002"
    fix = "export `F.rms_norm` with opset 23, or write the last product as `normed * weight`"

    def faults(self, graph: LiveGraph, target: Target) -> Iterable[Fault]:
        """Return the last product of each such norm; see `NodeRule.faults`."""
        for node in graph.of("Mul"):
            if given(node, 0) in graph.constants and _is_normed(_maker(node, 1, "Mul")):
                yield Fault(node, "RMSNorm is written out in the form that can't be finalized")
            elif _has_one_weight(node, graph) and _is_normed(_maker(node, 0, "Mul")):
                what = "RMSNorm is written out, with one weight for all of a row"
                yield Fault(node, what, "it compiles, and computes wrong values")


def _has_one_weight(node: "Node", graph: LiveGraph) -> bool:
    weight = given(node, 1)
    return weight in graph.constants and (dims(weight) or (1,))[-1] == 1


def _maker(node: "Node | None", index: int, *operators: str) -> "Node | None":
    """The node that makes an input, if it is one of these operators."""
    value = None if node is None else given(node, index)
    maker = None if value is None else value.producer()
    return maker if maker is not None and operator(maker) in operators else None


def _is_normed(product: "Node | None") -> bool:
    """Whether a node is x * (1 / sqrt(mean(x ^ 2) + eps))."""
    from onnx_ir import DataType

    root = _maker(_maker(product, 1, "Reciprocal"), 0, "Sqrt")
    mean = _maker(_maker(root, 0, "Add"), 0, "ReduceMean")
    power = _maker(mean, 0, "Pow")
    if product is None or mean is None or power is None:
        return False
    x = given(product, 0)
    same = x is not None and given(power, 0) is x and x.dtype == DataType.FLOAT
    return same and _is(given(power, 1), 2) and _is_over_last(mean)


def _is_over_last(mean: "Node") -> bool:
    x = given(mean, 0)
    last = -1 if x is None or x.shape is None else len(x.shape) - 1
    stored = constant_values(given(mean, 1))
    axes = list(attribute(mean, "axes", ())) if stored is None else stored.tolist()
    return axes in ([-1], [last]) and bool(attribute(mean, "keepdims", 1))


def _is(value: "Value | None", number: float) -> bool:
    known = constant_values(value)
    return known is not None and known.size == 1 and known.item() == number
