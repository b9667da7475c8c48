"""Rule L202: operators that the compiler has no form of."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from surgery.lint.onnx.live_nodes import STANDARD, LiveGraph, constant_values, given, operator
from surgery.lint.rules.graph._node_rule import MOE_OPERATORS, Fault, NodeRule
from surgery.npu.target import Target

if TYPE_CHECKING:
    from onnx_ir import Node

_KNOWN_DOMAINS: Final = frozenset((*STANDARD, "ai.onnx.ml", "com.microsoft"))
_ROOT: Final = 2**0.5
_TOLERANCE: Final = 1e-3


class UnsupportedOperator(NodeRule):
    """An operator that the target's compiler does not have.

    Which these are stands in the target's file under `operators.lacking`. An operator of a domain
    that nobody knows is refused too.

    ## Why is it bad?

    Such a node stays on the CPU. It splits the graph into parts between which all activations
    are copied, and a strict compile fails.

    ## Example

    `Loop`, `Trilu` of a mask that is an input, `Erf` outside of a GELU, `TensorScatter`.

    ## Use instead

    What the finding says; for most, the same thing as arithmetic over fixed sizes: a mask as an
    input instead of `Trilu`, `Gelu` (opset 20) instead of `Erf`, a loop unrolled.

    ## Evidence

    The target's fact for the operator: for Snapdragon the compiler, run. `Erf` as part of a
    GELU and what depends on constants alone are folded before the compiler sees them, and are not
    reported.
    """

    code = "L202"
    name = "unsupported-operator"
    evidence = "proved"

    def faults(self, graph: LiveGraph, target: Target) -> Iterable[Fault]:
        """Return nodes of refused operators and of unknown domains; see `NodeRule.faults`."""
        lacking = target.operators.lacking
        for node in graph.nodes:
            name = operator(node)
            is_known = name in MOE_OPERATORS or is_gelu(node)
            if lacking and name in lacking.value and not is_known:
                why = f"operators of type `{name}` are not supported by the compiler"
                fix = _INSTEAD.get(name, "write it as arithmetic over tensors of fixed size")
                yield Fault(node, f"no operator `{name}` on the NPU", why, fix, fact=lacking)
            elif node.domain not in _KNOWN_DOMAINS:
                why = "neither ONNX nor onnxruntime has an operator of that domain"
                yield Fault(node, f"`{name}` is an operator that no one knows", why, _OWN)


_OWN: Final = "export it as standard operators, or as a function in the file"
_INSTEAD: Final = {
    "Loop": "unroll it, or run the step from outside with its state as inputs and outputs",
    "Scan": "unroll it, or run the step from outside with its state as inputs and outputs",
    "Compress": "use `Where` with the mask, which keeps every row",
    "Unique": "compute it outside and give the result as an input",
    "Multinomial": "sample outside, from the logits that the graph gives",
    "TensorScatter": "give the new keys and values as outputs, and put them into the cache outside",
    "Trilu": "give the mask as an input, or as a constant",
    "Erf": "use `Gelu` (opset 20), or the complete formula x * 0.5 * (1 + Erf(x / sqrt(2)))",
    "BitwiseAnd": "use `And` on booleans",
    "BitwiseOr": "use `Or` on booleans",
    "BitwiseNot": "use `Not` on booleans",
    "com.microsoft::MultiHeadAttention": "export with ONNX's own `Attention` (opset 23)",
    "com.microsoft::RotaryEmbedding": "export with ONNX's own `RotaryEmbedding` (opset 23)",
}


def is_gelu(node: "Node") -> bool:
    """Whether an `Erf` is x * 0.5 * (1 + Erf(x / sqrt(2))), which the compiler takes in one."""
    if operator(node) != "Erf" or not _is_divided(node):
        return False
    users = [use.node for use in node.outputs[0].uses()]
    return len(users) == 1 and operator(users[0]) == "Add" and _multiplies(users[0])


def _is_divided(node: "Node") -> bool:
    maker = node.inputs[0].producer() if node.inputs[0] else None
    if maker is None or operator(maker) not in ("Div", "Mul"):
        return False
    by = [constant_values(given(maker, index)) for index in (0, 1)]
    root = _ROOT if operator(maker) == "Div" else 1 / _ROOT
    return any(n is not None and n.size == 1 and abs(n.item() - root) < _TOLERANCE for n in by)


def _multiplies(node: "Node") -> bool:
    users = [use.node for use in node.outputs[0].uses()]
    return len(users) == 1 and operator(users[0]) == "Mul"
