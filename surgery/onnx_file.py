"""Read an ONNX file for lint: weights stay on disk, shapes are worked out."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from surgery.diagnostic import Diagnostic, SurgeryError
from surgery.rule import GraphSubject

if TYPE_CHECKING:
    from onnx_ir import Model, Node, TensorProtocol

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
        SurgeryError: X121 where it is no ONNX graph, X122 where its weights are not all there.
    """
    import onnx_ir

    path = Path(path)
    _refuse_unreadable(path)
    try:
        model = onnx_ir.load(path)
        if not len(model.graph) and not model.graph.outputs:
            raise ValueError("it holds no graph")
        _refuse_truncated(model, path)
        return _settled(model)
    except SurgeryError:
        raise
    except Exception as error:  # protobuf, onnx and onnx_ir each raise their own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SurgeryError(_malformed(path, reason)) from error


def subject_of(path: Path) -> GraphSubject:
    """Return what rules on graphs look at in a file; nodes go by their own names.

    Raises:
        SurgeryError: those of `read_onnx`.
    """
    return GraphSubject(read_onnx(path), _own_name)


def _own_name(node: "Node") -> str:
    return node.name or node.op_type


def _refuse_unreadable(path: Path) -> None:
    if not path.is_file():
        what = f"`{path}` is {'a folder' if path.is_dir() else 'not there'}, not an ONNX file"
        raise SurgeryError(Diagnostic("X121", what, fix="name an .onnx file"))
    if path.stat().st_size > _LARGEST:
        raise SurgeryError(_malformed(path, "it is of more than 2 GB, which no ONNX file can be"))


def _refuse_truncated(model: "Model", path: Path) -> None:
    """Compare what the graph says of its weights with the files, without reading them."""
    faults: dict[str, list[str]] = {}
    for tensor in _stored(model):
        fault = _fault(tensor)
        if fault:
            faults.setdefault(fault, []).append(tensor.name or "")
    if faults:
        raise SurgeryError(_missing_data(path, fault, names) for fault, names in faults.items())


def _stored(model: "Model") -> Iterator["TensorProtocol"]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value


def _fault(tensor: "TensorProtocol") -> str:
    from onnx_ir import ExternalTensor, TensorProtoTensor

    if isinstance(tensor, TensorProtoTensor) and tensor.raw.raw_data:
        size = len(tensor.raw.raw_data)
        return f"it holds {size:,} bytes of {tensor.nbytes:,}" if size < tensor.nbytes else ""
    if not isinstance(tensor, ExternalTensor):
        return ""
    file = Path(tensor.path)
    if not file.is_file():
        return f"`{tensor.location}` is not beside it"
    size = file.stat().st_size
    end = (tensor.offset or 0) + max(tensor.length or 0, tensor.nbytes)
    return f"`{tensor.location}` ends after {size:,} bytes" if end > size else ""


def _settled(model: "Model") -> "Model":
    """Put functions in the place of their calls, and compute what is known beforehand."""
    from onnx_ir.passes.common import InlinePass

    from surgery.onnx_fold import fold
    from surgery.onnx_names import mark_shared_names

    mark_shared_names(model)
    model = InlinePass()(model).model if model.functions else model
    _forget_sizes(model)
    return fold(model)


def _forget_sizes(model: "Model") -> None:
    """Drop symbolic sizes of what is computed: inference would keep a name where it has a size.

    And whatever is written of what makes a tensor as large as it is told to, which may be untrue.
    """
    for node in model.graph.all_nodes():
        for value in node.outputs:
            known = value.shape is not None and value.shape.is_static()
            if not known or node.op_type in _MAKERS:
                value.shape = None


def _malformed(path: Path, reason: str) -> Diagnostic:
    return Diagnostic("X121", f"`{path}` is not an ONNX graph", reason, "export or copy it again")


def _missing_data(path: Path, fault: str, names: list[str]) -> Diagnostic:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return Diagnostic(
        "X122",
        f"the weights of `{path}` are not all there",
        why=f"{fault}, and `{names[0]}`{more} should be in it",
        fix="copy the file of the weights again, beside the graph",
    )
