"""What rules share on `If` with a condition at run time, whose branches become one graph.

The compiler writes both branches into the graph around them, by the names in the file, and selects
between their results (If of onnxruntime-qnn 2.7.0).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from surgery.lint.onnx.branch_names import shared_name
from surgery.lint.onnx.live_nodes import dims, operator
from surgery.lint.rules.graph._run_time import ARGUMENTS

if TYPE_CHECKING:
    from onnx_ir import Graph, Node, Value


def gives_several(node: "Node") -> bool:
    """Whether a branch gives more than one result, used or not."""
    return len(node.outputs) > 1


def gives_unlike(node: "Node") -> bool:
    """Whether the results of the branches differ in size."""
    sizes = {dims(branch.outputs[0]) for branch in _branches(node)}
    return len(sizes) > 1


def shares_names(node: "Node") -> bool:
    """Whether a name within one branch was in the file within the other one, too."""
    return bool(shared_name(node))


def takes_stored(node: "Node") -> bool:
    """Whether a branch takes a stored tensor of the graph around it that nothing else brought in.

    Only what the graph's inputs, or nodes before the `If`, have made tensors of is at hand.
    """
    before = _before(node)
    return any(value not in before for value in _stored_outside(node))


def _branches(node: "Node") -> "list[Graph]":
    return [node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]


def _stored_outside(node: "Node") -> "Iterator[Value]":
    for branch in _branches(node):
        within = {branch, *(inner.graph for inner in branch.all_nodes())}
        for inner in branch.all_nodes():
            for value in inner.inputs:
                if value is not None and _is_stored(value) and value.graph not in within:
                    yield value


def _is_stored(value: "Value") -> bool:
    maker = value.producer()
    return value.is_initializer() or (maker is not None and operator(maker) == "Constant")


def _before(node: "Node") -> "set[Value]":
    """The tensors that nodes take on whose results the condition depends."""
    found: set[Value] = set()
    left = [node.inputs[0]]
    while left:
        value = left.pop()
        maker = None if value is None else value.producer()
        if maker is None:
            continue
        fixed = ARGUMENTS.get(operator(maker), {})
        for index, taken in enumerate(maker.inputs):
            if taken is not None and taken not in found:
                found.update(() if index in fixed else (taken,))
                left.append(taken)
    return found
