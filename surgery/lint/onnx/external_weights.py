"""Whether the weights of an ONNX graph are where it says, without reading them."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from onnx_ir import AttributeType, ExternalTensor, TensorProtoTensor

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError, some_of
from surgery.storage.escape import escapes

if TYPE_CHECKING:
    from onnx_ir import Model, TensorProtocol


def refuse_missing(model: "Model", path: Path) -> None:
    """Compare what a graph says of its weights with the files.

    Args:
        model: as it was read.
        path: its file.

    Raises:
        SurgeryError: X113 for files outside of the graph's folder, X122 for what is not there, is
            no file, or ends too early.
    """
    outside: dict[str, list[str]] = {}
    faults: dict[str, list[str]] = {}
    for tensor in _stored(model):
        if isinstance(tensor, ExternalTensor) and escapes(str(tensor.location)):
            outside.setdefault(str(tensor.location), []).append(tensor.name or "")
        elif fault := _fault(tensor):
            faults.setdefault(fault, []).append(tensor.name or "")
    if outside or faults:
        raise SurgeryError(
            [
                *(
                    diagnostic("X113", path=path, location=location, listed=_listed(names))
                    for location, names in outside.items()
                ),
                *(
                    diagnostic("X122", path=path, fault=fault, listed=_listed(names))
                    for fault, names in faults.items()
                ),
            ]
        )


def _stored(model: "Model") -> "Iterator[TensorProtocol]":
    """Initializers, and tensors of attributes, which may be in other files too."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
    for node in model.graph.all_nodes():
        for attribute in node.attributes.values():
            if attribute.type == AttributeType.TENSOR and not attribute.is_ref():
                yield attribute.as_tensor()


def _fault(tensor: "TensorProtocol") -> str:
    if isinstance(tensor, TensorProtoTensor) and tensor.raw.raw_data:
        size = len(tensor.raw.raw_data)
        return f"it holds {size:,} bytes of {tensor.nbytes:,}" if size < tensor.nbytes else ""
    if not isinstance(tensor, ExternalTensor):
        return ""
    file = Path(tensor.path)
    if not file.is_file():
        there = "is a folder, a device or a pipe" if file.exists() else "is not next to it"
        return f"`{tensor.location}` {there}"
    size, begin, length = file.stat().st_size, tensor.offset or 0, tensor.length or 0
    if begin < 0 or length < 0:
        return f"`{tensor.location}` has no place below 0"
    end = begin + max(length, tensor.nbytes)
    return f"`{tensor.location}` ends after {size:,} bytes" if end > size else ""


def _listed(names: list[str]) -> str:
    return some_of([f"`{name}`" for name in names], 1)
