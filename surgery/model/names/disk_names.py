"""Map names on disk to names in memory, as transformers does when it loads a checkpoint.

Most checkpoints store each tensor under the name that it has in memory, which is checked without
torch. For the others (experts one by one on disk and stacked in memory, a prefix more or less, old
names), transformers' own conversion is run once, and its result is cached.
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
    """The tensors on disk that a tensor in memory is made from.

    Args:
        name: Name in memory; of a shared tensor, the alias under which it is stored.
        dtype: A safetensors dtype.
        shape: Dimensions, as in torch.
        sources: Tensors on disk, in the order in which transformers takes them.
        patterns: For each source, the pattern under which transformers' converter takes it; empty
            where the tensor has the bytes of its one source.
        layer: Name with which transformers calls the converter.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    sources: tuple[StoredTensor, ...]
    patterns: tuple[str, ...] = ()
    layer: str = ""

    @property
    def is_converted(self) -> bool:
        """Whether transformers' converter makes the bytes; otherwise they are copied unchanged."""
        return bool(self.patterns)


@dataclass(frozen=True, slots=True)
class DiskNames:
    """A checkpoint with its tensors under their names in memory, from `read_disk_names`.

    Args:
        checkpoint: Headers of its files.
        names: From names on disk to names in memory.
        tied: From the alias of a shared tensor to the name under which it is counted.
        conversion: Returns transformers' conversion; called only where it is needed.
    """

    checkpoint: Checkpoint
    names: NameMap
    tied: Mapping[str, str]
    conversion: Callable[[], Conversion]

    def origin(self, name: str) -> Origin | None:
        """The origin of the tensor in memory `name`; None where the checkpoint lacks it.

        A shared tensor may be stored under any of its names.
        """
        counted = self.tied.get(name, name)
        aliases = (alias for alias, shared in self.tied.items() if shared == counted)
        return next(filter(None, map(self._origin, (name, counted, *aliases))), None)

    def source(self, origin: Origin) -> StoredTensor | Callable[[], bytes]:
        """The bytes of a tensor in memory, as `NewTensor.source` takes them.

        A converted tensor is computed on demand, from its memory-mapped sources alone.
        """
        if not origin.is_converted:
            return origin.sources[0]
        return partial(_convert, self.conversion, origin)

    def disk_to_memory(self) -> dict[str, str | None]:
        """From each tensor on disk to the tensor in memory that it becomes or becomes part of.

        In the order of `Checkpoint.tensors`. None stands for what transformers ignores on loading,
        such as layers for multi-token prediction. One that several are made from, such as packed q,
        k and v, goes to the first of them. Where each tensor has its own name on disk, all others
        are ignored.
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
    map is cached.

    Args:
        files: Files of the checkpoint.
        anatomy: Anatomy of the model. A quantized one is taken to store tensors under their own
            names.
        model: Builds the model on the meta device, where transformers' conversion is needed.

    Raises:
        SurgeryError: M102, M201 to M208 for the files; M104, M105 and M110 where transformers'
            conversion is needed and fails.
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

    Shapes are compared too: transformers may transpose a tensor that keeps its name.
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
