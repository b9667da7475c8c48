"""An adapter's multimodal path as a plain checkpoint: copies in place of their originals.

Tensors keep their names on disk, and files in which nothing changes are unchanged. What
transformers converts from several tensors on disk is written as it is in memory, which it reads
too.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from surgery.adapter.side_files import adapter_name
from surgery.model.anatomy import Anatomy
from surgery.model.names.disk_names import DiskNames, Origin, read_disk_names
from surgery.operations.edits import AddLora
from surgery.plan.planner import Plan
from surgery.storage.file_names import ADAPTER_WEIGHTS
from surgery.storage.safetensors.checkpoint import INDEX_NAME, WEIGHTS_NAME
from surgery.storage.safetensors.header import StoredTensor, read_header, tensor_bytes
from surgery.storage.safetensors.lora_merge import (
    LowRank,
    cast,
    fp32_values,
    low_rank,
    merged,
    reader,
    reader_of,
)
from surgery.storage.safetensors.stream import Streamed, stored_chunks, streamed
from surgery.storage.safetensors.writer import NewTensor

Chunks = Callable[[], Iterator[bytes]]


@dataclass(frozen=True)
class WeightFile:
    """One weight file.

    Args:
        name: File name.
        tensors: Tensors in the file.
        same: The base's file with exactly these bytes; None where a tensor is changed.
    """

    name: str
    tensors: tuple[Streamed, ...]
    same: Path | None


def multimodal_files(plan: Plan, folder: Path, *, merge: bool) -> list[WeightFile]:
    """Return the weight files of the multimodal path; only headers are read.

    Args:
        plan: Plan of an adapter that doesn't train the base in place.
        folder: Path of the adapter folder.
        merge: Whether LoRA is merged into its matrices.

    Raises:
        SurgeryError: M201 to M208 for the files.
    """
    assert plan.files is not None
    stored = read_disk_names(plan.files, plan.anatomy)
    changed = dict(_changed(plan, read_header(folder / ADAPTER_WEIGHTS), stored, merge=merge))
    changes = _Changes(stored, changed)
    files = stored.checkpoint.files
    return [_weight_file(file, changes, alone=len(files) == 1) for file in files]


def new_index(files: Sequence[WeightFile]) -> dict[str, bytes]:
    """Return the index of several weight files by its file name; empty for a single file."""
    if len(files) == 1:
        return {}
    specs = [(spec, file.name) for file in files for spec in (t.spec for t in file.tensors)]
    total = sum(tensor_bytes(dtype, shape) for (_, dtype, shape), _ in specs)
    names = {name: file for (name, _, _), file in specs}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(names.items()))}
    return {INDEX_NAME: (json.dumps(index, indent=2) + "\n").encode()}


def shared_tensor(anatomy: Anatomy, names: set[str]) -> str | None:
    """A tensor among `names` that the model has under another name too; None where there is none.

    Args:
        anatomy: Anatomy of the model.
        names: Full names of tensors in memory.
    """
    shared = {*anatomy.tied, *anatomy.tied.values()}
    return min(shared & names, default=None)


def changed_names(plan: Plan, *, merge: bool) -> set[str]:
    """Names of the tensors in memory that differ on the multimodal path.

    Args:
        plan: The adapter's plan.
        merge: Whether LoRA is merged.
    """
    copies = {t.name for edit in (*plan.swaps(), *plan.part_swaps()) for t in edit.tensors}
    return copies | {_weight(edit) for edit in plan.loras() if merge}


@dataclass(frozen=True)
class _Changes:
    """Changed tensors, and where they are written.

    Args:
        stored: Names and tensors of the base on disk.
        made: Bytes of each changed tensor, by name in memory.
    """

    stored: DiskNames
    made: Mapping[str, Chunks]

    def in_place_of(self, disk: str, tensor: StoredTensor) -> Iterator[Streamed]:
        """What replaces a tensor of the base; of several that become one, the first."""
        names = self.stored.names
        memory = names.memory.get(disk, "")
        if memory in self._layers:
            yield from self._remade(memory) if names.disk[memory][0] == disk else ()
            return
        chunks = self._by_disk.get(disk) or partial(stored_chunks, tensor)
        yield Streamed((disk, tensor.dtype, tensor.shape), chunks)

    @cached_property
    def _by_disk(self) -> dict[str, Chunks]:
        origins = ((self.stored.origin(name), chunks) for name, chunks in self.made.items())
        return {o.sources[0].name: p for o, p in origins if o and not o.is_converted}

    @cached_property
    def _layers(self) -> dict[str, list[str]]:
        """Tensors that transformers' converter makes together, where any of them is changed."""
        layers: dict[str, list[str]] = {}
        for name, made in self.stored.names.made.items():
            layers.setdefault(made.layer, []).append(name)
        return {n: layer for n, layer in layers.items() if not self.made.keys().isdisjoint(layer)}

    def _remade(self, layer: str) -> Iterator[Streamed]:
        for name in self._layers[layer]:
            made, origin = self.stored.names.made[name], self.stored.origin(name)
            assert origin is not None
            same = NewTensor(name, made.dtype, made.shape, self.stored.source(origin))
            chunks = self.made.get(name) or streamed(same).chunks
            yield Streamed(same.spec, chunks)


def _weight_file(file: Path, changes: _Changes, *, alone: bool) -> WeightFile:
    tensors = {n: t for n, t in changes.stored.checkpoint.tensors.items() if t.file == file}
    found = tuple(s for name, tensor in tensors.items() for s in changes.in_place_of(name, tensor))
    is_same = [_unchanged(streamed) for streamed in found] == list(tensors.values())
    return WeightFile(WEIGHTS_NAME if alone else file.name, found, file if is_same else None)


def _unchanged(streamed: Streamed) -> StoredTensor | None:
    """The tensor of the base whose bytes are streamed unchanged; None where they differ."""
    chunks = streamed.chunks
    if not (isinstance(chunks, partial) and chunks.func is stored_chunks):
        return None
    tensor: StoredTensor = chunks.args[0]
    return tensor


def _changed(
    plan: Plan, tensors: Mapping[str, StoredTensor], stored: DiskNames, *, merge: bool
) -> Iterator[tuple[str, Chunks]]:
    """Name in memory and bytes of each tensor that differs on the multimodal path."""
    for edit in (*plan.swaps(), *plan.part_swaps()):
        for tensor in edit.tensors:
            own, origin = tensors[adapter_name(tensor)], stored.origin(tensor.name)
            yield tensor.name, _as_stored(own, origin.dtype if origin else own.dtype)
    for lora in plan.loras() if merge else ():
        origin = stored.origin(_weight(lora))
        assert origin is not None
        pair = partial(_pair, plan, lora, tensors)
        yield _weight(lora), partial(_merged, stored, origin, pair)


def _as_stored(tensor: StoredTensor, dtype: str) -> Chunks:
    if tensor.dtype == dtype:
        return partial(stored_chunks, tensor)
    return lambda: cast(stored_chunks(tensor), tensor.dtype, dtype)


def _merged(stored: DiskNames, origin: Origin, pair: Callable[[], LowRank]) -> Iterator[bytes]:
    source = stored.source(origin)
    read = reader(source) if isinstance(source, StoredTensor) else reader_of(source)
    return merged(read, origin.dtype, pair)


def _pair(plan: Plan, lora: AddLora, tensors: Mapping[str, StoredTensor]) -> LowRank:
    a, b = (fp32_values(tensors[adapter_name(tensor)]) for tensor in lora.tensors[:2])
    name = lora.path.removeprefix(f"{plan.anatomy.block_path(lora.block)}.")
    matrices = plan.anatomy.block(lora.block).matrices
    is_transposed = any(m.is_transposed for m in matrices if m.name == name)
    return low_rank(a, b, lora.scale, is_transposed=is_transposed)


def _weight(edit: AddLora) -> str:
    return f"{edit.path}.weight"
