"""Rule L210: mixture of experts as one operator."""

from collections.abc import Iterable

from surgery.lint.onnx.live_nodes import LiveGraph
from surgery.lint.rules.graph._node_rule import MOE_OPERATORS, Fault, NodeRule
from surgery.npu.target import Target


class FusedMoe(NodeRule):
    """A mixture of experts is one contrib operator.

    Finds `com.microsoft.MoE` and `com.microsoft.QMoE`, which onnxruntime's model builder
    writes.

    ## Why is it bad?

    They run on CPU and on desktop GPUs. The HTP compiler has no such operator, refuses it, and
    the complete mixture, which is most of the model, stays on the CPU.

    ## Example

    ```
    y = com.microsoft.MoE <k = 2> (x, scores, up, , down)
    ```

    ## Use instead

    A dense model: `duplicate` and `lora` add capacity for images with no routing. A mixture
    written as `TopK`, `Gather` of the experts' weights and `MatMul` compiles, but every expert
    is resident.

    ## Evidence

    Proved: `Operators of type MoE are not supported by QNN EP`. Qualcomm previews a conversion
    of its own for mixtures (QAIRT-Dev 0.6.0, docs.qualcomm.com 80-87189-2), which needs its SDK
    and was not tried.
    """

    code = "L210"
    name = "fused-moe"
    evidence = "proved"
    why = "the compiler has no such operator, and leaves it to the CPU"
    fix = "use a dense base; `duplicate` and `lora` add capacity without routing"

    def faults(self, graph: LiveGraph, target: Target) -> Iterable[Fault]:
        """Return every such node; see `NodeRule.faults`."""
        for node in graph.of(*MOE_OPERATORS):
            yield Fault(node, f"a mixture of experts is one `{node.op_type}` operator")
