"""Rule L215: bfloat16."""

from collections.abc import Iterable

from surgery.lint.onnx.live_nodes import LiveGraph
from surgery.lint.rules.graph._node_rule import Fault, NodeRule
from surgery.npu.target import Target


class Bfloat16(NodeRule):
    """Tensors in bfloat16.

    ## Why is it bad?

    The NPU computes in fp16 and in integers. The compiler has no such type: `Failed to map Onnx
    data type to Qnn data type!`

    ## Example

    A checkpoint that is exported in the type it is stored in.

    ## Use instead

    `float32` or `float16` before the export. fp16 reaches 65,504 only: where activations exceed
    that, quantize them to 16 bits instead (`w8a16`, `w4a16`).

    ## Evidence

    The compiler. Its documentation has an option for bf16 on newer chips (soc_model 88 and up).
    """

    code = "L215"
    name = "bfloat16"
    evidence = "proved"
    compilers = ("htp", "none")
    why = "the compiler says `Failed to map Onnx data type to Qnn data type!`"
    fix = "export in float32 or float16, or quantize"

    def faults(self, graph: LiveGraph, target: Target) -> Iterable[Fault]:
        """Return nodes with bf16 among inputs or outputs; see `NodeRule.faults`."""
        from onnx_ir import DataType

        fact = target.types.get("bf16")
        if fact is None or fact.value:
            return
        for node in graph.nodes:
            values = (value for value in (*node.inputs, *node.outputs) if value is not None)
            if any(value.dtype == DataType.BFLOAT16 for value in values):
                yield Fault(node, "computed in bfloat16", fact=fact)
