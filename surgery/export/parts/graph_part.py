"""A part of a model as files: the graphs of its steps, and one file of weights that they share.

Imports torch at the top: only exporters that make graphs reach it.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Final

import numpy as np
import onnx_ir as ir
import torch

from surgery.export.base import Item
from surgery.graphs.torch_export import MODULE, TRANSPOSED
from surgery.runtime.manifest import ExportedFile, GraphRecord
from surgery.storage.disk_errors import io_errors
from surgery.storage.safetensors.header import Progress

WEIGHTS_FILE: Final = "weights.bin"
_PAGE: Final = 4096  # onnxruntime maps a tensor into memory where it begins at one
_GRAPH_BYTES: Final = 1 << 20  # more than a graph takes without weights, a vision tower's too

ReadWeights = Callable[[list[str]], Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class StepGraph:
    """A graph without weights.

    Args:
        name: of its file.
        model: its initializers have names, shapes and no values.
        record: for the manifest; None for a graph of dynamic shapes, which has none.
    """

    name: str
    model: ir.Model
    record: GraphRecord | None = None


@dataclass(frozen=True)
class _Extent:
    """Where a tensor is in the file of weights."""

    offset: int
    length: int


@dataclass
class GraphPart:
    """Graphs that share their weights.

    Args:
        graphs: of one place in the model, or of one like it.
        read_weights: gives parameters by their names in the base, as torch has them.
        traced_path: full module name of what the graphs were traced from.
        path: that of what they are now for.
    """

    graphs: Sequence[StepGraph]
    read_weights: ReadWeights
    traced_path: str = ""
    path: str = ""
    _extents: dict[str, _Extent] = field(default_factory=dict, repr=False)

    @property
    def items(self) -> list[Item]:
        """Its files; the weights must be written first."""
        return [_WeightsFile(self), *(_GraphFile(self, graph) for graph in self.graphs)]

    @property
    def missing(self) -> dict[str, ir.Value]:
        """What has no values in the graphs, by name in the base."""
        return {
            self.renamed(name): value
            for graph in self.graphs
            for name, value in graph.model.graph.initializers.items()
            if value.const_value is None
        }

    @property
    def size(self) -> int:
        """Bytes of the file of weights."""
        ends = 0
        for value in self.missing.values():
            ends = _next_page(ends) + 4 * prod(value.shape.numpy() if value.shape else ())
        return ends

    def renamed(self, name: str) -> str:
        """What a value or a module of the graphs is called in this part."""
        inside = self.traced_path != self.path and f"{name}.".startswith(f"{self.traced_path}.")
        return self.path + name.removeprefix(self.traced_path) if inside else name

    def write_weights(self, file: Path) -> str:
        """Write all weights once, and return the file's SHA-256."""
        missing = self.missing
        tensors = self.read_weights([name.removesuffix(".T") for name in missing])
        digest = hashlib.sha256()
        with io_errors(file, self.size), file.open("xb") as stream:
            for name, value in missing.items():
                fill = bytes(_next_page(stream.tell()) - stream.tell())
                content = _bytes(tensors[name.removesuffix(".T")], value)
                self._extents[name] = _Extent(stream.tell() + len(fill), len(content))
                for extent in (fill, content):
                    digest.update(extent)
                    stream.write(extent)
        return digest.hexdigest()

    def bound(self, graph: StepGraph) -> ir.Model:
        """Return a graph whose weights are those in the file of weights."""
        model = graph.model.clone()
        values = model.graph.initializers
        for name in [name for name, value in values.items() if value.const_value is None]:
            value = values.pop(name)
            value.name = self.renamed(name)
            value.metadata_props.clear()
            value.const_value = self._external(value)
            values[value.name] = value
        for value in model.graph.inputs:
            value.name = self.renamed(str(value.name))
        for node in model.graph:
            node.metadata_props[MODULE] = self.renamed(node.metadata_props.get(MODULE, ""))
        return model

    def _external(self, value: ir.Value) -> ir.ExternalTensor:
        extent = self._extents[str(value.name)]
        assert value.shape is not None
        return ir.ExternalTensor(
            WEIGHTS_FILE,
            extent.offset,
            extent.length,
            ir.DataType.FLOAT,
            shape=value.shape,
            name=str(value.name),
        )


@dataclass(frozen=True)
class _WeightsFile:
    part: GraphPart
    name: str = WEIGHTS_FILE

    def required_space(self, folder: Path) -> int:
        return self.part.size

    def write(self, folder: Path, progress: Progress | None) -> ExportedFile:
        digest = self.part.write_weights(folder / self.name)
        size = (folder / self.name).stat().st_size
        if progress:
            progress(size)
        return ExportedFile(name=self.name, bytes=size, sha256=digest, how="written")


@dataclass(frozen=True)
class _GraphFile:
    part: GraphPart
    graph: StepGraph

    @property
    def name(self) -> str:
        return self.graph.name

    def required_space(self, folder: Path) -> int:
        return _GRAPH_BYTES

    def write(self, folder: Path, progress: Progress | None) -> ExportedFile:
        file = folder / self.name
        with io_errors(file):
            ir.save(self.part.bound(self.graph), file)
            content = file.read_bytes()
        if progress:
            progress(_GRAPH_BYTES)
        return ExportedFile(
            name=self.name,
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            how="written",
            graph=_renamed(self.graph.record, self.part) if self.graph.record else None,
        )


def _renamed(record: GraphRecord, part: GraphPart) -> GraphRecord:
    inputs = (v.model_copy(update={"name": part.renamed(v.name)}) for v in record.inputs)
    return record.model_copy(update={"inputs": tuple(inputs)})


def _bytes(tensor: torch.Tensor, value: ir.Value) -> memoryview:
    transposed = tensor.T if TRANSPOSED in value.metadata_props else tensor
    flat = np.ascontiguousarray(transposed.float().numpy()).reshape(-1)
    return flat.view(np.uint8).data


def _next_page(offset: int) -> int:
    return -(-offset // _PAGE) * _PAGE
