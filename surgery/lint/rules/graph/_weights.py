"""What rules share on quantized weights: a constant behind `DequantizeLinear`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from surgery.lint.onnx.live_nodes import (
    LiveGraph,
    attribute,
    constant_values,
    dims,
    given,
    operator,
)

if TYPE_CHECKING:
    from onnx_ir import Node

Granularity = Literal["tensor", "channel", "block"]
_PRODUCTS: Final = frozenset(("MatMul", "Gemm", "Conv", "ConvTranspose"))


@dataclass(frozen=True)
class QuantizedWeight:
    """A constant that is stored in few bits.

    Args:
        node: its `DequantizeLinear`.
        stored: the stored type, such as `INT4`.
        granularity: what one scale is for.
        zeros: the different zero points; empty where none is given.
        product: whether each user is a product of matrices or a convolution.
        transposed: whether a `Transpose` stands between.
        activations: bits of what it is multiplied with; 0 for floats.
    """

    node: "Node"
    stored: str
    granularity: Granularity
    zeros: frozenset[int]
    product: bool
    transposed: bool
    activations: int


def quantized_weights(graph: LiveGraph) -> Iterator[QuantizedWeight]:
    """Return every quantized weight but biases, which are int32."""
    for node in graph.of("DequantizeLinear"):
        weight = given(node, 0)
        if weight is None or weight not in graph.constants or weight.dtype is None:
            continue
        if weight.dtype.name == "INT32":
            continue
        users, transposed = _users(node)
        yield QuantizedWeight(
            node,
            weight.dtype.name,
            _granularity(node),
            _zeros(node),
            all(operator(user) in _PRODUCTS for user in users),
            transposed,
            min((_bits(user, graph) for user in users), default=0),
        )


def _granularity(node: "Node") -> Granularity:
    if attribute(node, "block_size", 0):
        return "block"
    scales = dims(given(node, 1)) or ()
    return "channel" if any(size != 1 for size in scales) else "tensor"


def _zeros(node: "Node") -> frozenset[int]:
    """A zero point without data is a traced one: taken as zero, which the exporter writes."""
    if given(node, 2) is None:
        return frozenset()
    stored = constant_values(given(node, 2))
    return frozenset((0,)) if stored is None else frozenset(int(n) for n in stored.flat)


def _users(node: "Node") -> tuple[list["Node"], bool]:
    users = [use.node for use in node.outputs[0].uses()]
    if users and all(operator(user) == "Transpose" for user in users):
        return [use.node for user in users for use in user.outputs[0].uses()], True
    return users, False


def _bits(user: "Node", graph: LiveGraph) -> int:
    """Bits of the quantized activations that a node takes, 0 for floats."""
    for value in user.inputs:
        maker = None if value is None else value.producer()
        if maker is None or operator(maker) != "DequantizeLinear":
            continue
        stored = given(maker, 0)
        if stored is not None and stored not in graph.constants and stored.dtype is not None:
            return int(stored.dtype.bitwidth)
    return 0
