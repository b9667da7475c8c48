"""Compute what a runtime has computed before its compiler sees an ONNX graph.

onnxruntime settles what depends on constants and fixed sizes, and takes the one branch of an `If`
whose condition is known (its docs, "Graph Optimizations", basic). A rule that judged the graph as
it is written would find faults that no compiler ever sees: sizes worked out by `Shape`, `Slice` and
`Concat`, or the other branch. What onnxruntime leaves alone is left alone here as well.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import TYPE_CHECKING, Any, Final

from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass
from onnxscript.optimizer._constant_folding import FoldConstantsPass

if TYPE_CHECKING:
    from onnx_ir import Model, Node

_NEVER_FOLDED: Final = frozenset(
    ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "NonZero", "Bernoulli")
)
"""Never computed: a weight stays in its quantized form up to the compiler; `NonZero` was tried."""
_UNLIKE_RUNTIME: Final = frozenset(
    ("Size", "Concat", "SplitToSequence", "SequenceAt", "ConcatFromSequence")
)
"""What onnxscript rewrites and onnxruntime doesn't, unless all of it is known: the number of a
tensor's elements, a `Concat` with nothing, and sequences, which become `Split` and `Concat`."""
_LARGEST: Final = 1 << 18
"""Numbers in what is computed, at most; beyond it a value counts as known and has no values."""
_SMALL: Final = 1 << 13
"""Numbers in what it is computed from, at most: weights stay on disk."""
_ROUNDS: Final = 8
"""Branches in branches, at most; a round settles one level, and whatever depends on it."""
_LOGGERS: Final = ("onnxscript", "onnx_ir")


def fold(model: "Model") -> "Model":
    """Return a graph with what is known beforehand computed, and its shapes inferred.

    Args:
        model: without functions; it is changed.

    Raises:
        Exception: whatever onnxscript raises on a graph that breaks ONNX's rules.
    """
    unused = [out for node in model.graph for out in node.outputs if not _is_used(node)]
    model.graph.outputs.extend(unused)  # a runtime compiles what nothing uses all the same
    for _ in range(_ROUNDS):
        result = _Fold(
            shape_inference=True,
            input_size_limit=_SMALL,
            output_size_limit=_LARGEST,
            should_fold=_is_computed,
        )(model)
        model = RemoveUnusedNodesPass()(result.model).model
        infer = ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)
        model = infer(model).model
        if not result.modified:
            break
    del model.graph.outputs[len(model.graph.outputs) - len(unused) :]
    return model


def _is_used(node: "Node") -> bool:
    return any(out.uses() or out.is_graph_output() for out in node.outputs)


class _Fold(FoldConstantsPass):
    """onnxscript's folding, less what it rewrites that onnxruntime doesn't."""

    def process_node(self, node: "Node", is_function: bool) -> Any:
        """See `FoldConstantsPass.process_node`."""
        if node.op_type in _UNLIKE_RUNTIME and _is_left_alone(node):
            return None
        return super().process_node(node, is_function)


def _is_left_alone(node: "Node") -> bool:
    """Whether one of `_UNLIKE_RUNTIME` depends on run time; of `Concat`, with an empty part."""
    given = [value for value in node.inputs if value is not None]
    if all(value.const_value is not None for value in given):
        return False
    shapes = [value.shape for value in given if value.shape is not None]
    return node.op_type != "Concat" or any(0 in shape for shape in shapes)


def _is_computed(node: "Node") -> bool:
    """Whether a node whose inputs are all known is computed now."""
    if node.op_type in _NEVER_FOLDED or len(node.outputs) != 1:
        return False
    tensors = [value.const_value for value in node.inputs if value is not None]
    if any(tensor is not None and tensor.size > _SMALL for tensor in tensors):
        return False
    shape = node.outputs[0].shape
    return shape is not None and shape.is_static() and prod(shape.numpy()) <= _LARGEST


@contextmanager
def silence() -> Iterator[None]:
    """Keep what onnx_ir and onnxscript log of single nodes from the user, for a while."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
