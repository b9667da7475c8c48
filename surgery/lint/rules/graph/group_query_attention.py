"""Rule L211: the contrib operator for grouped-query attention."""

from collections.abc import Iterable
from typing import Final

from surgery.lint.onnx.live_nodes import LiveGraph
from surgery.lint.rules.graph._node_rule import Fault, NodeRule
from surgery.npu.target import Target

OPERATOR: Final = "com.microsoft::GroupQueryAttention"


class GroupQueryAttention(NodeRule):
    """Attention is onnxruntime's `GroupQueryAttention`.

    Finds `com.microsoft.GroupQueryAttention`, which onnxruntime's model builder writes.

    ## Why is it bad?

    The QNN provider keeps it off the NPU by default: `GroupQueryAttention filtered off QNN by
    the op_affinity provider option`. Its cache, with lengths at run time, then lives on the CPU
    too.

    ## Example

    ```
    y, key, value = com.microsoft.GroupQueryAttention <num_heads = 16, kv_num_heads = 2>
        (q, k, v, past_key, past_value, lengths, total)
    ```

    ## Use instead

    ONNX's own `Attention` (opset 23), which takes fewer key-value heads than query heads, or
    the products written out; both compile. `surgery export` writes them with a static cache.

    ## Evidence

    The compiler, which refused it with its default options.
    """

    code = "L211"
    name = "group-query-attention"
    evidence = "proved"
    why = "the provider's option `op_affinity` keeps it off the NPU by default"
    fix = "export with ONNX's own `Attention` (opset 23), or with the products written out"

    def faults(self, graph: LiveGraph, target: Target) -> Iterable[Fault]:
        """Return every such node; see `NodeRule.faults`."""
        for node in graph.of(OPERATOR):
            yield Fault(node, "attention is the contrib operator `GroupQueryAttention`")
