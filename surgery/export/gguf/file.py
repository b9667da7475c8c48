"""A GGUF file out of streams of tensors: one tensor is in memory at a time."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from surgery.export.base import WeightType
from surgery.runtime.manifest import ExportedFile
from surgery.storage.disk_errors import io_errors
from surgery.storage.safetensors.header import Progress
from surgery.storage.safetensors.stream import hash_file

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

_BLOCK: Final = 32
"""Values that share a scale in q8_0 and q4_0, along a row."""

_ALIGNMENT: Final = 32
_FINER: Final = ("token_embd.weight", "output.weight")
"""Matrices that a file of q4_0 holds in q8_0, as llama.cpp's own quantizer takes finer types."""


@dataclass(frozen=True)
class GgufTensor:
    """A tensor to write.

    Args:
        name: Name in GGUF.
        shape: Shape, rows first.
        read: Reads its values, float32; called when it is written.
    """

    name: str
    shape: tuple[int, ...]
    read: Callable[[], NDArray[np.float32]]


@dataclass(frozen=True)
class GgufFile:
    """A file of an export.

    Args:
        name: File name.
        architecture: Name of the model's architecture.
        dtype: Type of most matrices; vectors are float32.
        tensors: In the order of the file.
        describe: Adds the metadata.
        lost: What tensors lose to a rank, filled as they are read; see `ExportedFile.lost`.
    """

    name: str
    architecture: str
    dtype: WeightType
    tensors: Sequence[GgufTensor]
    describe: Callable[["GGUFWriter"], None]
    lost: dict[str, float] = field(default_factory=dict)

    def required_space(self, folder: Path) -> int:
        """Its size in bytes."""
        return self._size

    @cached_property
    def _size(self) -> int:
        with TemporaryDirectory() as folder:
            path = Path(folder, "head.gguf")
            writer = self._begun(path)
            writer.close()
            head = path.stat().st_size
        sizes = [head, *(self._bytes(tensor) for tensor in self.tensors)]
        return sum(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes)

    def write(self, folder: Path, progress: Progress | None) -> ExportedFile:
        """Write it, a tensor at a time."""
        from gguf.quants import quantize

        path = folder / self.name
        with io_errors(path):
            writer = self._begun(path)
            for tensor in self.tensors:
                writer.write_tensor_data(quantize(tensor.read(), self._type(tensor)))
                if progress:
                    progress(self._bytes(tensor))
            writer.close()
        size = path.stat().st_size
        digest = hash_file(path)
        return ExportedFile(
            name=self.name, bytes=size, sha256=digest, how="written", lost=self.lost
        )

    def _begun(self, path: Path) -> "GGUFWriter":
        from gguf import GGUFWriter

        writer = GGUFWriter(path, self.architecture)
        self.describe(writer)
        for tensor in self.tensors:
            float32: Any = np.dtype(np.float32)  # of the values; the file's type comes last
            writer.add_tensor_info(
                tensor.name, tensor.shape, float32, self._bytes(tensor), self._type(tensor)
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        return writer

    def _type(self, tensor: GgufTensor) -> "GGMLQuantizationType":
        from gguf import GGMLQuantizationType

        dtype = self.dtype
        if len(tensor.shape) < 2:
            dtype = "f32"
        elif dtype in ("q8_0", "q4_0") and tensor.shape[-1] % _BLOCK:
            dtype = "f16"
        elif dtype == "q4_0" and tensor.name in _FINER:
            dtype = "q8_0"
        return GGMLQuantizationType[dtype.upper()]

    def _bytes(self, tensor: GgufTensor) -> int:
        from gguf import GGML_QUANT_SIZES

        values, size = GGML_QUANT_SIZES[self._type(tensor)]
        return math.prod(tensor.shape) // int(values) * int(size)
