"""Write a graph, and its weights next to it where they are large; complete, or not at all."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

from surgery.storage.disk_errors import check_free_space, io_errors

if TYPE_CHECKING:
    import onnx_ir as ir

LARGE: Final = 1 << 30
"""Bytes of weights from which on they are in a file of their own; protobuf ends at 2 GiB."""


def initializer_bytes(model: "ir.Model") -> int:
    """Bytes of all initializers that have values."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def save(model: "ir.Model", path: Path, *, large: int = LARGE) -> None:
    """Write a graph.

    Args:
        model: with weights; one without can't be read by others, and is refused.
        path: of the `.onnx` file; weights are in the file of that name with `.data` after it.
        large: bytes of weights from which on they are there.

    Raises:
        SurgeryError: A302 to A304 for the disk.
        ValueError: where an initializer has no values.
    """
    import onnx_ir as ir

    empty = [name for name, value in model.graph.initializers.items() if value.const_value is None]
    if empty:
        raise ValueError(f"{len(empty)} initializers have no values, `{empty[0]}` first")
    size = initializer_bytes(model)
    check_free_space(path, size)
    data = [f"{path.name}.data"] if size >= large else []
    with io_errors(path, size):
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            ir.save(model, Path(folder, path.name), external_data=data[0] if data else None)
            for name in (*data, path.name):  # the graph last, because it needs the other
                Path(folder, name).replace(path.with_name(name))
