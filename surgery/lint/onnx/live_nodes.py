"""The part of an ONNX graph that a device must run, without what is settled before it runs.

A runtime folds what depends on constants alone, and takes the one branch of an `If` whose condition
is known (onnxruntime's basic optimizations, docs "Graph Optimizations"). A rule that judged those
nodes would find faults that no compiler ever sees.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from onnx_ir import Graph, Model, Node, Value

STANDARD: Final = ("", "ai.onnx")
"""Names of ONNX's own domain."""

_RANDOM: Final = frozenset(("RandomNormal", "RandomUniform", "Multinomial", "Bernoulli"))
_LIKE: Final = "Like"
_NEVER_FOLDED: Final = frozenset(("QuantizeLinear", "DequantizeLinear", "NonZero"))
"""Never folded: a weight stays in its quantized form up to the compiler; `NonZero` was tried."""
_SMALL: Final = 4096


@dataclass(frozen=True)
class LiveGraph:
    """What runs.

    Args:
        inputs: of the complete graph, stored ones left out.
        nodes: in order, those of subgraphs and functions after the node that holds them.
        constants: values that are known before the graph runs.
    """

    inputs: tuple["Value", ...]
    nodes: tuple["Node", ...]
    constants: frozenset["Value"]

    def of(self, *operators: str) -> Iterator["Node"]:
        """Nodes of ONNX's own operators of these names."""
        return (node for node in self.nodes if operator(node) in operators)


@lru_cache(maxsize=1)
def live_graph(model: "Model") -> LiveGraph:
    """Return what of a model runs.

    The last answer is kept, as every rule asks for it; a model must not change between two.
    """
    constants: set[Value] = set()
    walked = [
        node
        for graph in (model.graph, *model.functions.values())
        for node in _walk(graph, constants)
    ]
    nodes = [node for node in walked if node.op_identifier() not in model.functions]
    stored = model.graph.initializers
    inputs = tuple(value for value in model.graph.inputs if value.name not in stored)
    return LiveGraph(inputs, tuple(nodes), frozenset(constants))


def operator(node: "Node") -> str:
    """The name of a node's operator: bare for ONNX's own, `com.microsoft::MoE` for others."""
    return node.op_type if node.domain in STANDARD else f"{node.domain}::{node.op_type}"


def given(node: "Node", index: int) -> "Value | None":
    """The input of a node at an index, None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def dims(value: "Value | None") -> tuple[int | None, ...] | None:
    """The size of each dimension, None for one that is not fixed; None where nothing is known."""
    if value is None or value.shape is None:
        return None
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def is_static(value: "Value | None") -> bool:
    """Whether every dimension is a number."""
    known = dims(value)
    return known is not None and None not in known


def constant_values(value: "Value | None") -> np.ndarray[Any, Any] | None:
    """The content of a small constant, None for what is no constant, is large or has no data."""
    from onnx_ir.convenience import get_const_tensor

    if value is None:
        return None
    tensor = get_const_tensor(value)
    if tensor is None or tensor.size > _SMALL:
        return None
    try:
        return np.asarray(tensor.numpy())
    except (TypeError, ValueError, OSError):
        return None


def attribute(node: "Node", name: str, default: Any) -> Any:
    """An attribute's value, or the default of its operator."""
    found = node.attributes.get(name)
    return default if found is None or found.is_ref() else found.value


def _walk(graph: "Any", constants: set["Value"]) -> Iterator["Node"]:
    constants.update(_initializers(graph))
    for node in graph:
        if _is_folded(node, constants):
            constants.update(node.outputs)
            continue
        if not _is_passed(node):
            yield node
        for branch in _branches(node, constants):
            yield from _walk(branch, constants)


def _initializers(graph: "Any") -> Iterable["Value"]:
    """A function has none; one of a graph that is an input too may be given again at run time."""
    inputs = set(graph.inputs)
    stored: Iterable[Value] = getattr(graph, "initializers", {}).values()
    return (value for value in stored if value not in inputs)


def _is_folded(node: "Node", constants: set["Value"]) -> bool:
    name = operator(node)
    if name == "Shape" and is_static(given(node, 0)):
        return True
    is_kept = name.removesuffix(_LIKE) in _RANDOM or name in _NEVER_FOLDED
    if is_kept or node.domain not in STANDARD or _subgraphs(node):
        return False
    return all(value is None or value in constants for value in node.inputs)


def _is_passed(node: "Node") -> bool:
    """Whether a node gives its input, so that it is taken out; at inference Dropout does."""
    if operator(node) == "Identity":
        return True
    rest = any(out.uses() or out.is_graph_output() for out in node.outputs[1:])
    return operator(node) == "Dropout" and not rest and not node.outputs[0].is_graph_output()


def _subgraphs(node: "Node") -> dict[str, "Graph"]:
    """The graphs of `If`, `Loop` and `Scan`."""
    from onnx_ir import AttributeType

    kinds = node.attributes.items()
    return {name: attr.as_graph() for name, attr in kinds if attr.type == AttributeType.GRAPH}


def _branches(node: "Node", constants: set["Value"]) -> Iterable["Graph"]:
    branches = _subgraphs(node)
    if operator(node) == "If" and given(node, 0) in constants:
        known = constant_values(given(node, 0))
        if known is not None:
            return (branches["then_branch" if known.item() else "else_branch"],)
    return branches.values()
