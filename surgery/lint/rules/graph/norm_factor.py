"""Rule L232: layer norms whose factor is quantized in a way that the compiler doesn't take."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from surgery.lint.onnx.live_nodes import LiveGraph, constant_values, given, operator
from surgery.lint.rules.graph._node_rule import Fault, NodeRule
from surgery.npu.target import Target

if TYPE_CHECKING:
    from onnx_ir import Node

_SIGNED: Final = ("INT8", "INT4")
_MIDDLE: Final = 32768


class NormFactor(NodeRule):
    """A layer norm whose factor is stored in signed 8 or 4 bits, or as uint16 off the middle.

    ## Why is it bad?

    The norm and all that is quantized around it are refused: `QNN.backendValidateOpConfig() failed
    for node … of type LayerNorm with error code 3110`. onnxruntime's quantizer gives the factor the
    type of the weights, so that signed weights, which products of matrices need, break every vision
    tower.

    ## Example

    ```
    factor = DequantizeLinear(stored, scale, zero)
    y = LayerNormalization(x, factor, shift)
    ```

    ## Use instead

    A factor of uint8, of int16, or of uint16 with a zero point of 32768: in `get_qnn_qdq_config`
    `init_overrides={name: [{"quant_type": QuantType.QUInt16, "symmetric": True}]}`, as
    `surgery lint --prove` does.

    ## Evidence

    The compiler, which refused int8, int4, and uint16 with a zero point of 0 or 1, and took the
    others, with a cosine of 0.999999 to the same graph on the CPU.
    """

    code = "L232"
    name = "norm-factor"
    evidence = "proved"
    why = "the compiler has no layer norm with such a factor"
    fix = "store the factor as uint8, or as uint16 around 32768"

    def faults(self, graph: LiveGraph, target: Target) -> Iterable[Fault]:
        """Return norms with such factors; see `NodeRule.faults`."""
        for node in graph.of("LayerNormalization"):
            factor = given(node, 1)
            maker = None if factor is None else factor.producer()
            if maker is None or operator(maker) != "DequantizeLinear":
                continue
            stored = given(maker, 0)
            kind = stored.dtype.name if stored is not None and stored.dtype else ""
            if kind in _SIGNED:
                yield Fault(node, f"a layer norm whose factor is {kind.lower()}")
            elif kind == "UINT16" and not _is_centered(maker):
                yield Fault(node, "a layer norm whose factor is uint16 around no 32768")


def _is_centered(maker: "Node") -> bool:
    zeros = constant_values(given(maker, 2))
    return zeros is not None and bool((zeros == _MIDDLE).all())
