"""Rule L229: operators that a published table lacks, where there is no compiler to ask."""

from collections.abc import Iterable
from typing import Final

from surgery.lint.onnx.live_nodes import LiveGraph, operator
from surgery.lint.rules.graph._node_rule import Fault, NodeRule
from surgery.npu.target import Target

_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "Abs": ("ABS",),
    "Add": ("ADD",),
    "And": ("LOGICAL_AND",),
    "ArgMax": ("ARG_MAX",),
    "ArgMin": ("ARG_MIN",),
    "Attention": ("BATCH_MATMUL", "SOFTMAX"),
    "AveragePool": ("AVERAGE_POOL_2D",),
    "Cast": ("CAST",),
    "Clip": ("MAXIMUM", "MINIMUM"),
    "Concat": ("CONCATENATION",),
    "Conv": ("CONV_2D",),
    "ConvTranspose": ("TRANSPOSE_CONV",),
    "Cos": ("COS",),
    "CumSum": ("CUMSUM",),
    "DequantizeLinear": ("DEQUANTIZE",),
    "Div": ("DIV",),
    "Equal": ("EQUAL",),
    "Exp": ("EXP",),
    "Expand": ("BROADCAST_TO",),
    "Flatten": ("RESHAPE",),
    "Gather": ("GATHER",),
    "GatherElements": ("GATHER_ND",),
    "GatherND": ("GATHER_ND",),
    "Gelu": ("GELU",),
    "Gemm": ("FULLY_CONNECTED",),
    "Greater": ("GREATER",),
    "GreaterOrEqual": ("GREATER_EQUAL",),
    "HardSwish": ("HARD_SWISH",),
    "If": ("IF",),
    "LayerNormalization": ("MEAN", "SQUARED_DIFFERENCE", "RSQRT"),
    "LeakyRelu": ("LEAKY_RELU",),
    "Less": ("LESS",),
    "LessOrEqual": ("LESS_EQUAL",),
    "Loop": ("WHILE",),
    "MatMul": ("BATCH_MATMUL",),
    "Max": ("MAXIMUM",),
    "MaxPool": ("MAX_POOL_2D",),
    "Min": ("MINIMUM",),
    "Mul": ("MUL",),
    "Neg": ("NEG",),
    "NonZero": ("WHERE",),
    "Not": ("LOGICAL_NOT",),
    "OneHot": ("ONE_HOT",),
    "Or": ("LOGICAL_OR",),
    "Pad": ("PAD",),
    "Pow": ("POW",),
    "PRelu": ("PRELU",),
    "QuantizeLinear": ("QUANTIZE",),
    "RMSNormalization": ("STABLEHLO_COMPOSITE",),
    "Range": ("RANGE",),
    "ReduceMax": ("REDUCE_MAX",),
    "ReduceMean": ("MEAN",),
    "ReduceSum": ("SUM",),
    "Relu": ("RELU",),
    "Reshape": ("RESHAPE",),
    "RotaryEmbedding": ("MUL", "SUB", "ADD", "CONCATENATION"),
    "ScatterElements": ("SCATTER_ND",),
    "ScatterND": ("SCATTER_ND",),
    "Sigmoid": ("LOGISTIC",),
    "Sin": ("SIN",),
    "Slice": ("STRIDED_SLICE",),
    "Softmax": ("SOFTMAX",),
    "Split": ("SPLIT",),
    "Sqrt": ("SQRT",),
    "Squeeze": ("RESHAPE",),
    "Sub": ("SUB",),
    "Swish": ("LOGISTIC", "MUL"),
    "Tanh": ("TANH",),
    "Tile": ("TILE",),
    "TopK": ("TOPK_V2",),
    "Transpose": ("TRANSPOSE",),
    "Unsqueeze": ("RESHAPE",),
    "Where": ("SELECT_V2",),
    "com.microsoft::SimplifiedLayerNormalization": ("STABLEHLO_COMPOSITE",),
}
"""ONNX's operators by the TFLite ones that they become; what is not here has none."""


class OperatorTable(NodeRule):
    """An operator that the vendor's published table of operators does not name.

    For a chip whose compiler cannot be had. ONNX's names are translated to those of TFLite, in
    which the table is written.

    ## Why is it bad?

    What the NPU does not take runs on the CPU, and splits the graph.

    ## Example

    `TopK`, `Gather`, `Where`, `Sin`, `Cos` and `Neg` on a Dimensity.

    ## Use instead

    Arithmetic that the table has; sines and cosines as inputs; `Neg` as a product with -1.

    ## Evidence

    The table that Google and MediaTek publish with LiteRT. An OEM's own compiler may take more,
    so it is a warning.
    """

    code = "L229"
    name = "operator-table"
    evidence = "table"
    known_by = "google-ai-edge/LiteRT, litert/vendors/mediatek, 2026-11-22"
    severity = "warning"
    compilers = ("none",)
    fix = "write it with operators of the table, or ask the vendor's own tools"

    def faults(self, graph: LiveGraph, target: Target) -> Iterable[Fault]:
        """Return nodes whose operators are not in the table; see `NodeRule.faults`."""
        table = target.operators.table
        if table is None:
            return
        for node in graph.nodes:
            name = operator(node)
            needed = _NAMES.get(name, (name,))
            missing = [word for word in needed if word not in table.value]
            if missing:
                words = ", ".join(missing)
                why = "the compiler may take more than the table names"
                yield Fault(node, f"`{name}` ({words}) is not in the table", why, fact=table)
