"""Rule L216: element types that the NPU has not, or for quantized tensors only."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from surgery.lint.onnx.live_nodes import STANDARD, LiveGraph, operator
from surgery.lint.rules.graph._node_rule import Fault, NodeRule
from surgery.npu.target import Target

if TYPE_CHECKING:
    from onnx_ir import Node, Value

_NARROW: Final = frozenset(("INT8", "INT16", "UINT16", "UINT64", "INT4", "UINT4", "INT2", "UINT2"))
_NO_TYPE: Final = frozenset(
    ("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0", "FLOAT4E2M1")
)
_NOT_NUMERIC: Final = frozenset(("STRING", "COMPLEX64", "COMPLEX128"))
_UNSIGNED: Final = frozenset(("UINT8", "UINT32"))
_PASSED_ON: Final = frozenset(("Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose"))
"""What takes uint8 and uint32 as they are."""
_QUANTIZED: Final = frozenset(
    ("QuantizeLinear", "DequantizeLinear", "QLinearMatMul", "QLinearConv", "MatMulNBits")
)


class TensorType(NodeRule):
    """Narrow or unsigned integers that are no quantized tensor, floats of 4 or 8 bits, and text.

    ## Why is it bad?

    On the NPU, 8 and 16 bits are for tensors with a scale. Without one the node is refused:
    `Failed to add node.` int32, int64 and booleans are computed with; uint8 and uint32 are only
    passed on.

    ## Example

    A mask of token types as int8, compared with `Equal`.

    ## Use instead

    int32; or `QuantizeLinear` and `DequantizeLinear` around what is meant as a quantized
    tensor.

    ## Evidence

    The compiler, for twenty types; nine operators for the integers.
    """

    code = "L216"
    name = "tensor-type"
    evidence = "proved"
    why = "the NPU has fp16, fp32, int32, int64 and booleans, the rest only with a scale"
    fix = "use int32, or quantize with a scale"

    def faults(self, graph: LiveGraph, target: Target) -> Iterable[Fault]:
        """Return nodes with such values; see `NodeRule.faults`."""
        for node in graph.nodes:
            if node.domain not in STANDARD or _is_quantized(node):
                continue
            kinds = {_type(value) for value in (*node.inputs, *node.outputs)}
            narrow = _NARROW if operator(node) in _PASSED_ON else _NARROW | _UNSIGNED
            bad = kinds & (narrow | _NO_TYPE | _NOT_NUMERIC)
            if bad:
                yield Fault(node, f"not a type of the NPU: {', '.join(sorted(bad)).lower()}")


def _type(value: "Value | None") -> str:
    return "" if value is None or value.dtype is None else value.dtype.name


def _is_quantized(node: "Node") -> bool:
    """Whether it quantizes, or is added alongside what does, where the two are taken as one."""
    makers = [value.producer() for value in node.inputs if value is not None]
    users = [use.node for out in node.outputs for use in out.uses()]
    near = [node, *(maker for maker in makers if maker is not None), *users]
    return any(one.op_type in _QUANTIZED for one in near)
