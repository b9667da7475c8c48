"""A step exported to ONNX: opset 23, static shapes, each node with the module that it is of.

Parameters are kept out of the optimizer's sight, so that a graph is the same whatever its weights.
Only what is reached when a graph is asked for imports this module.
"""

import ast
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from typing import Any, Final

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import optimizer
from torch import nn
from torch.utils import _pytree as pytree

OPSET: Final = 23
MODULE: Final = "surgery.module"
"""The key of a node's metadata under which its module is."""

_LOGGERS: Final = ("torch.onnx", "torch.fx.experimental.symbolic_shapes", "onnxscript", "onnx_ir")
TRANSPOSED: Final = "surgery.turned"
"""The key of an initializer's metadata that is there where it is stored transposed."""

_BLOCK: Final = "plain.block"
_SCOPES: Final = "pkg.torch.onnx.name_scopes"
_CLASSES: Final = "pkg.torch.onnx.class_hierarchy"
_WRAPPERS: Final = {".original_module": "", ".expert.default": ".expert", ".base_layer": ""}


def to_onnx(
    step: nn.Module,
    feeds: dict[str, torch.Tensor],
    module_path: str,
    *,
    with_values: bool,
    dynamic: Mapping[str, Any] | None = None,
) -> ir.Model:
    """Export a step.

    Args:
        step: takes the feeds as a dict, and returns one.
        feeds: one of each input, whose shapes are the graph's.
        module_path: full module name of the block, which its parameters and nodes are named after.
        with_values: whether the parameters have values; without, initializers are shapes and types.
        dynamic: for each input its axes that are dynamic, as torch.export takes them; None for a
            graph of static shape.

    Returns:
        The graph, without inputs that it doesn't use. Weights of linear maps are as MatMul takes
        them: (inputs, outputs).

    Raises:
        Exception: whatever torch.export and torch.onnx raise.
    """
    with _quietly(), torch.no_grad():
        exported = torch.export.export(
            step, (feeds,), dynamic_shapes=(dynamic,) if dynamic else None, strict=False
        )
        program = torch.onnx.export(
            exported, (), dynamo=True, opset_version=OPSET, optimize=False, verbose=False
        )
        assert program is not None
        model: ir.Model = program.model
        graph = model.graph
        _name_values(graph.inputs, pytree.tree_leaves({name: name for name in feeds}))
        _name_values(graph.outputs, _outputs(exported))
        values = _take_values(graph, exported.graph_signature.parameters)
        _transpose_weights(graph, values)
        optimizer.optimize_ir(model)
    for value in list(graph.inputs):
        if not value.uses():
            graph.inputs.remove(value)
    _name_modules(graph, module_path)
    _restore_values(graph, values if with_values else dict.fromkeys(values), module_path)
    return model


def module_of(node: ir.Node) -> str:
    """Return the full module name in the base that a node comes from.

    Args:
        node: of a graph from `to_onnx`, also after it was saved and read.

    Returns:
        Such as `model.layers.3.self_attn.q_proj`; empty for a node of another graph.
    """
    return node.metadata_props.get(MODULE, "")


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep what torch and onnxscript log about their own works from the user."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):  # torch.export prints there
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _name_values(values: Iterable[ir.Value], names: Iterable[str]) -> None:
    for value, name in zip(values, names, strict=True):
        value.name = name


def _outputs(exported: Any) -> Iterator[str]:
    spec = exported.call_spec.out_spec
    yield from spec.unflatten(list(range(spec.num_leaves)))


def _take_values(graph: ir.Graph, parameters: Any) -> dict[str, Any]:
    """Take the values of the parameters out of the graph; their shapes and types stay."""
    values: dict[str, Any] = {}
    for name in parameters:
        value = graph.initializers.get(name)
        if value is not None:
            values[name] = value.const_value
            value.const_value = None
    return values


def _transpose_weights(graph: ir.Graph, values: dict[str, Any]) -> None:
    """Store the weights of linear maps as MatMul takes them: no graph turns them around."""
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "Transpose" and node.inputs else None
        if source is None or source.name not in values:
            continue
        axes = node.attributes.get_ints("perm")
        name = source.name if len(source.uses()) == 1 else f"{source.name}.T"
        shape = ir.Shape([source.shape[axis] for axis in axes])  # type: ignore[index]
        tensor = _transposed(values[source.name], axes, shape)
        out = node.outputs[0]
        transposed = ir.Value(name=name, shape=shape, type=source.type)
        transposed.metadata_props[TRANSPOSED] = "yes"
        ir.convenience.replace_all_uses_with(out, transposed)
        graph.remove(node, safe=True)
        if name == source.name:
            del graph.initializers[name]
        graph.initializers[name] = transposed
        values[name] = tensor


def _transposed(tensor: Any, axes: Any, shape: ir.Shape) -> ir.LazyTensor:
    def make() -> ir.TensorProtocol:
        return ir.Tensor(np.ascontiguousarray(tensor.numpy().transpose(axes)))

    return ir.LazyTensor(make, dtype=tensor.dtype, shape=shape)


def _name_modules(graph: ir.Graph, module_path: str) -> None:
    """Say of each node which module it is of; one that the optimizer made is its neighbor's."""
    for node in graph:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        inside = [scope for scope in scopes[:-1] if scope.startswith(_BLOCK)]
        makers = (value.producer() for value in node.inputs if value is not None)
        near = (module_of(maker) for maker in makers if maker is not None)
        module = name_in_base(inside[-1], module_path) if inside else next(near, module_path)
        module = module.removesuffix(".expert")
        classes = node.metadata_props.get(_CLASSES)
        node.metadata_props.clear()  # the rest holds paths of this machine
        node.metadata_props[MODULE] = module
        if classes:
            node.metadata_props[_CLASSES] = classes


def name_in_base(name: str, module_path: str) -> str:
    """Return what the base calls a parameter or a module of a step.

    Args:
        name: in the step, such as `plain.block.mlp.up_proj.base_layer.weight`.
        module_path: full module name of the block; empty for the entire model.
    """
    for wrapper, stored in _WRAPPERS.items():
        name = name.replace(wrapper, stored)
    return f"{module_path}{name.removeprefix(_BLOCK)}".removeprefix(".")


def _restore_values(graph: ir.Graph, values: Mapping[str, Any], module_path: str) -> None:
    """Give the parameters their values again, and the base's names."""
    for name in list(graph.initializers):
        if name in values:
            value = graph.initializers.pop(name)
            value.name = name_in_base(name, module_path)
            value.const_value = values[name]
            graph.initializers[value.name] = value
