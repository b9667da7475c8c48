"""The one graph of both paths, and the adapter file that makes the text path the multimodal one.

Imports torch at the top: only the exporter reaches it, once it makes its graph.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx_ir as ir
import torch

from surgery.export.base import ExportJob, Item
from surgery.export.parts.graph_part import GraphPart, StepGraph
from surgery.graphs.block.step_inputs import lora_pairs
from surgery.graphs.decoder_graph import add_overridable_loras, decoder_graph, make_overridable
from surgery.graphs.model_shell import ModelWithoutWeights
from surgery.graphs.torch_export import TRANSPOSED
from surgery.runtime.genai.override_file import ADAPTER_FILE, write_overrides
from surgery.runtime.manifest import ExportedFile
from surgery.storage.disk_errors import io_errors
from surgery.storage.safetensors.header import Progress
from surgery.storage.safetensors.stream import hash_file

GRAPH_FILE: Final = "model.onnx"


class GenaiModel:
    """A decoder whose copied weights and LoRA can be overridden by an adapter file.

    Args:
        job: of an adapter that adds nothing but copies and LoRA.

    Raises:
        SurgeryError: A612 where torch can't export the model.
    """

    def __init__(self, job: ExportJob) -> None:
        self._job = job
        self._whole = ModelWithoutWeights(job.plan, trust_remote_code=job.trust_remote_code)
        self._model = decoder_graph(self._whole)
        self._copied = {name: self._initializers[name] for name in self._copied_names()}
        make_overridable(self._model, self._copied)
        add_overridable_loras(self._model, job.plan.loras())

    @property
    def items(self) -> list[Item]:
        """The file of weights, the graph, and the adapter file."""
        read = _Weights(self._whole)
        part = GraphPart([StepGraph(GRAPH_FILE, self._model)], lambda names: read)
        return [*part.items, _AdapterFile(self)]

    @cached_property
    def adapter_bytes(self) -> int:
        """Bytes of all that the adapter file overrides."""
        pairs = (tensor for lora in self._job.plan.loras() for tensor in lora.tensors[:2])
        sizes = (prod(value.shape.numpy()) for value in self._copied.values() if value.shape)
        return 4 * (sum(sizes) + sum(prod(tensor.shape) for tensor in pairs))

    def overriding(self) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
        """What the adapter file holds, by name, as the graph takes it."""
        for name, value in self._copied.items():
            found = self._whole.read_weights([name], self._job.folder)[name]
            yield name, _array(found.T if TRANSPOSED in value.metadata_props else found)
        for name, tensor in lora_pairs(self._job.plan.loras(), self._job.folder).items():
            yield name, _array(tensor.T)

    @property
    def _initializers(self) -> Mapping[str, ir.Value]:
        return self._model.graph.initializers

    def _copied_names(self) -> list[str]:
        anatomy = self._job.plan.anatomy
        blocks = {f"{anatomy.block_path(edit.block)}." for edit in self._job.plan.swaps()}
        return [name for name in self._initializers if name.startswith(tuple(blocks))]


class _Weights(Mapping[str, torch.Tensor]):
    """The base's weights, each read when it is asked for, so that one at a time is in memory."""

    def __init__(self, whole: ModelWithoutWeights) -> None:
        self._whole = whole

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._whole.read_weights([name])[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._whole.model.named_parameters())

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(frozen=True)
class _AdapterFile:
    """The file that ONNX Runtime overrides initializers from."""

    model: GenaiModel
    name: str = ADAPTER_FILE

    def required_space(self, folder: Path) -> int:
        return self.model.adapter_bytes

    def write(self, folder: Path, progress: Progress | None) -> ExportedFile:
        target = folder / self.name
        with io_errors(target, self.model.adapter_bytes):
            write_overrides(target, dict(self.model.overriding()))
        if progress:
            progress(self.model.adapter_bytes)
        size = target.stat().st_size
        return ExportedFile(name=self.name, bytes=size, sha256=hash_file(target), how="written")


def _array(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(tensor.float().numpy())
