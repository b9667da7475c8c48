"""Refuse ONNX graphs that break ONNX's own rules, before anything is worked out of them.

onnx's checker decides: types of attributes and tensors, names that nothing makes, operators that
don't exist. It is given the graph without its weights, which it would copy, or look for on disk.
"""

from collections.abc import Iterator

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto
from onnx.checker import check_model


def refuse_invalid(model: ModelProto) -> None:
    """Check a graph.

    Args:
        model: as it is stored; it is not changed.

    Raises:
        ValidationError: of onnx, whose first line is the reason.
        ValueError: for what its checker lets pass.
    """
    stripped = ModelProto()
    stripped.ir_version = model.ir_version
    stripped.opset_import.extend(model.opset_import)
    stripped.functions.extend(model.functions)
    stripped.graph.CopyFrom(_without_weights(model.graph))
    for node in (node for function in stripped.functions for node in function.node):
        _empty_attributes(node)
    check_model(stripped)
    for graph in _graphs(stripped.graph):
        for tensor in graph.initializer:
            if tensor.data_type not in TensorProto.DataType.values():
                raise ValueError(f"`{tensor.name}` has a type of number {tensor.data_type}")


def _without_weights(graph: GraphProto) -> GraphProto:
    stripped = GraphProto(name=graph.name)
    for fields in ("node", "input", "output", "value_info", "quantization_annotation"):
        getattr(stripped, fields).extend(getattr(graph, fields))
    for tensor in graph.initializer:
        if any(size < 0 for size in tensor.dims):
            raise ValueError(f"`{tensor.name}` has a size below 0")
        stripped.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=[0])
    for node in stripped.node:
        _empty_attributes(node)
    return stripped


def _empty_attributes(node: NodeProto) -> None:
    """Drop what is in other files, and the weights of branches."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            attribute.g.CopyFrom(_without_weights(attribute.g))
        if attribute.type == AttributeProto.TENSOR and attribute.t.external_data:
            attribute.t.CopyFrom(TensorProto(data_type=attribute.t.data_type, dims=[0]))


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _graphs(attribute.g)
