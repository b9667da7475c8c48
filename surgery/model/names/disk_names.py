"""Names on disk against names in memory, as transformers maps them when it loads a checkpoint.

Most checkpoints store each tensor under the name that it has in memory, which is seen without
torch. Where one doesn't (experts one by one on disk and stacked in memory, a prefix more or less,
old names), transformers itself is asked once, and its answer is kept beside the anatomy.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from surgery.model.anatomy import Anatomy
from surgery.model.meta_device import meta_model
from surgery.model.names.weight_conversion import Conversion, NameMap
from surgery.model.source import ModelFiles
from surgery.storage.cache import cached
from surgery.storage.safetensors.checkpoint import Checkpoint, StoredTensor

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_FORMAT: Final = "1"


@dataclass(frozen=True, slots=True)
class Origin:
    """What a tensor in memory is made of.

    Args:
        name: its name in memory; of a shared tensor, the alias under which it is stored.
        dtype: a safetensors name.
        shape: as torch prints it.
        sources: the tensors on disk, in the order in which transformers takes them.
        patterns: for each source, the pattern under which transformers' converter takes it; empty
            where the bytes of the one source are the tensor's own.
        layer: the name with which transformers calls the converter.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    sources: tuple[StoredTensor, ...]
    patterns: tuple[str, ...] = ()
    layer: str = ""

    @property
    def is_converted(self) -> bool:
        """Whether transformers' converter makes the bytes; else they move unchanged."""
        return bool(self.patterns)


@dataclass(frozen=True, slots=True)
class DiskNames:
    """A checkpoint under the names that its tensors have in memory; `read_disk_names` makes it."""

    checkpoint: Checkpoint
    names: NameMap
    tied: Mapping[str, str]
    conversion: Callable[[], Conversion]

    def origin(self, name: str) -> Origin | None:
        """What the tensor in memory `name` is made of; None where the checkpoint lacks it.

        A shared tensor may be stored under any of its names.
        """
        counted = self.tied.get(name, name)
        aliases = (alias for alias, shared in self.tied.items() if shared == counted)
        return next(filter(None, map(self._origin, (name, counted, *aliases))), None)

    def source(self, origin: Origin) -> StoredTensor | Callable[[], bytes]:
        """Where the bytes of a tensor in memory come from, as `NewTensor` takes it.

        A converted tensor is made when it is asked for, of its sources alone, which are mapped into
        memory.
        """
        if not origin.is_converted:
            return origin.sources[0]
        return partial(_convert, self.conversion, origin)

    def disk_to_memory(self) -> dict[str, str | None]:
        """For each tensor on disk, the tensor in memory that it becomes or becomes part of.

        In the order of `Checkpoint.tensors`. None stands for what transformers ignores on loading,
        such as layers for multi-token prediction. One of which several are made, as of packed q, k
        and v, goes to the first of them. Where each tensor has its own name on disk, the others are
        what is ignored.
        """
        return {name: self.names.memory.get(name) for name in self.checkpoint.tensors}

    def _origin(self, name: str) -> Origin | None:
        stored, made = self.checkpoint.tensors, self.names.made.get(name)
        if made is not None:
            parts = self.names.disk[made.layer]
            patterns = tuple(self.names.patterns.get(part, part) for part in parts)
            sources = tuple(stored[part] for part in parts)
            return Origin(name, made.dtype, made.shape, sources, patterns, made.layer)
        first = next(iter(self.names.disk.get(name, ())), None)
        if first is None or first in self.names.patterns:
            return None
        return Origin(name, stored[first].dtype, stored[first].shape, (stored[first],))


def read_disk_names(
    files: ModelFiles,
    anatomy: Anatomy,
    model: "Callable[[], PreTrainedModel] | None" = None,
) -> DiskNames:
    """Map the names of a checkpoint on disk to those in memory.

    No torch is imported where each tensor is on disk under its own name and shape, or where the
    answer is in the cache.

    Args:
        files: where the checkpoint is.
        anatomy: its map. The tensors of a quantised one are taken to bear their own names.
        model: makes the model on the meta device, where transformers must be asked.

    Raises:
        SurgeryError: M102, M201 to M208 for the files; M104, M105 and M110 where transformers is
            asked and can't answer.
    """
    checkpoint = files.checkpoint()
    build = model or partial(meta_model, files)
    conversion = cache(lambda: Conversion(build()))
    if anatomy.quantization:
        names = NameMap(memory={name: name for name in checkpoint.tensors})
    else:
        names = _own_names(anatomy, checkpoint) or cached(
            "names",
            _key(files, checkpoint),
            NameMap,
            lambda: conversion().map_names(checkpoint.tensors),
        )
    return DiskNames(checkpoint, names, anatomy.tied, conversion)


def _convert(conversion: Callable[[], Conversion], origin: Origin) -> bytes:
    import torch

    tensor = conversion().make(origin.layer, _parts(origin))[origin.name]
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _parts(origin: Origin) -> "Iterator[tuple[str, str, torch.Tensor]]":
    from safetensors import safe_open

    with ExitStack() as stack:
        files = {source.file for source in origin.sources}
        opened = {file: stack.enter_context(safe_open(file, "pt")) for file in files}
        for source, pattern in zip(origin.sources, origin.patterns, strict=True):
            yield source.name, pattern, opened[source.file].get_tensor(source.name)


def _own_names(anatomy: Anatomy, checkpoint: Checkpoint) -> NameMap | None:
    """The map of a checkpoint that has each tensor under its own name and shape, else None.

    The shape counts: transformers may turn a tensor around that keeps its name.
    """
    shapes = {tensor.name: tensor.shape for tensor in anatomy.tensors()}
    shapes |= {alias: shapes[counted] for alias, counted in anatomy.tied.items()}
    stored = [n for n, t in checkpoint.tensors.items() if shapes.get(n) == t.shape]
    if _counted(stored, anatomy) != _counted(shapes, anatomy):
        return None
    return NameMap(memory={name: name for name in stored})


def _counted(names: Iterable[str], anatomy: Anatomy) -> set[str]:
    return {anatomy.tied.get(name, name) for name in names}


def _key(files: ModelFiles, checkpoint: Checkpoint) -> tuple[object, ...]:
    specs = [(t.name, t.dtype, t.shape) for t in checkpoint.tensors.values()]
    return _FORMAT, version("transformers"), files.config(), sorted(specs)
