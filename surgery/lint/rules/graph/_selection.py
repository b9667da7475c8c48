"""What rules share on `NonZero`, by which torch exports selections by a mask."""

from typing import TYPE_CHECKING, Final

from surgery.lint.onnx.live_nodes import dims, operator

if TYPE_CHECKING:
    from onnx_ir import Node, Value

_VIEWS: Final = ("Transpose", "Squeeze", "Unsqueeze", "Reshape", "Split", "Gather", "Slice", "Cast")
_TAKERS: Final = ("Gather", "GatherND", "ScatterND", "GatherElements", "ScatterElements")
_REACH: Final = 4


def is_padded(node: "Node") -> bool:
    """Whether the output of a `NonZero` has an annotated size, which is filled up with -1."""
    known = dims(node.outputs[0])
    return known is not None and None not in known


def taker(node: "Node") -> "Node | None":
    """The node that takes or puts rows where a `NonZero` says, through at most a few views."""
    values: list[Value] = list(node.outputs)
    for _ in range(_REACH):
        uses = [use for value in values for use in value.uses()]
        for use in uses:
            if operator(use.node) in _TAKERS and use.idx == 1:
                return use.node
        views = [use.node for use in uses if operator(use.node) in _VIEWS]
        values = [out for view in views for out in view.outputs]
    return None
