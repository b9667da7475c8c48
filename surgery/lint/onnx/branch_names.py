"""Names within the branches of an `If`, as the file has them: folding makes them unlike."""

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from onnx_ir import Graph, Model, Node

_SHARED: Final = "surgery.shared"
"""The key of a node's `meta` under which a name is that both of its branches use."""


def mark_shared_names(model: "Model") -> None:
    """Note at each `If` a name that something has in both branches."""
    for node in model.graph.all_nodes():
        if node.op_type == "If" and {"then_branch", "else_branch"} <= node.attributes.keys():
            one, other = (node.attributes[n].as_graph() for n in ("then_branch", "else_branch"))
            node.meta[_SHARED] = next(iter(sorted(_outputs_of(one) & _outputs_of(other))), "")


def shared_name(node: "Node") -> str:
    """Return what `mark_shared_names` noted; empty where there is none."""
    return str(node.meta.get(_SHARED, ""))


def _outputs_of(graph: "Graph") -> set[str]:
    outputs = {str(out.name) for node in graph for out in node.outputs if out.name}
    return outputs | {*graph.initializers}
