"""Read an ONNX file for lint: weights stay on disk, shapes are worked out."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.diagnostics.wording import first_line
from surgery.lint.base import GraphSubject

if TYPE_CHECKING:
    from onnx_ir import Model, Node, Value

_LARGEST: Final = 2**31 - 1
"""What a protobuf message can hold, in bytes."""
_MAKERS: Final = frozenset(
    ("ConstantOfShape", "Expand", "Range", "Tile", "Pad", "Resize", "OneHot")
)


def read_onnx(path: Path) -> "Model":
    """Read a graph.

    Weights in other files are mapped, not read. Functions of the file are put in the place of
    their calls, and what is known beforehand is computed, as onnxruntime does.

    Args:
        path: an `.onnx` file.

    Raises:
        SurgeryError: X113 where its weights are outside of its folder, X121 where it is no ONNX
            graph, X122 where its weights are not all there.
    """
    from surgery.lint.onnx.external_weights import refuse_missing
    from surgery.lint.onnx.fold import silence

    path = Path(path)
    _refuse_unreadable(path)
    try:
        with silence():
            model = _loaded(path)
            refuse_missing(model, path)
            return _settled(model)
    except SurgeryError:
        raise
    except Exception as error:  # protobuf, onnx and onnx_ir each raise their own
        raise SurgeryError(
            diagnostic("X121.malformed", path=path, reason=first_line(error))
        ) from error


def subject_of(path: Path) -> GraphSubject:
    """Return what rules on graphs look at in a file; nodes go by their own names.

    Raises:
        SurgeryError: those of `read_onnx`.
    """
    return GraphSubject(read_onnx(path), _own_name)


def _own_name(node: "Node") -> str:
    return node.name or node.op_type


def _refuse_unreadable(path: Path) -> None:
    if not os.path.isfile(path):  # False, too, for names that are too long
        raise SurgeryError(diagnostic("X121.kind", path=path, kind=_kind_of(path)))
    if path.stat().st_size > _LARGEST:
        raise SurgeryError(
            diagnostic(
                "X121.malformed",
                path=path,
                reason="it is of more than 2 GB, which no ONNX file can be",
            )
        )


def _kind_of(path: Path) -> str:
    if os.path.isdir(path):
        return "a folder"
    return "a device or a pipe" if os.path.exists(path) else "not there"


def _loaded(path: Path) -> "Model":
    """Read what is there, and hold it against ONNX's rules; weights in other files are mapped."""
    import onnx
    from onnx_ir.external_data import set_base_dir
    from onnx_ir.serde import deserialize_model

    from surgery.lint.onnx.check import refuse_invalid

    stored = onnx.load(path, load_external_data=False)
    if not stored.graph.node and not stored.graph.output:
        raise ValueError("it holds no graph")
    refuse_invalid(stored)
    model = deserialize_model(stored)
    set_base_dir(model.graph, path.parent)
    return model


def _settled(model: "Model") -> "Model":
    """Put functions in the place of their calls, and compute what is known beforehand."""
    from onnx_ir.passes.common import InlinePass

    from surgery.lint.onnx.branch_names import mark_shared_names
    from surgery.lint.onnx.fold import fold

    mark_shared_names(model)
    model = InlinePass()(model).model if model.functions else model
    _forget_sizes(model)
    return fold(model)


def _forget_sizes(model: "Model") -> None:
    """Drop symbolic sizes of what is computed: inference would keep a name where it has a size.

    And whatever is written of what makes a tensor as large as it is told to, which may be untrue.
    """
    from onnx_ir import Shape

    for node in model.graph.all_nodes():
        for value in node.outputs:
            known = value.shape is not None and value.shape.is_static() and not _is_open(value)
            if not known or node.op_type in _MAKERS:
                value.shape = None
    for value in (value for graph in model.graphs() for value in graph.inputs):
        if value.shape is not None and _is_open(value):
            sizes = [size if isinstance(size, int) and size >= 0 else None for size in value.shape]
            value.shape = Shape(sizes)


def _is_open(value: "Value") -> bool:
    """Whether a size is below 0, as some exporters write those that are not fixed."""
    return any(isinstance(size, int) and size < 0 for size in value.shape or ())
