"""The tensors of an assembled model: decoder and vision tower from disk, projector initialized.

Tensors in the decoder's dtype keep their bytes; those of a tower in another dtype are rounded to
it, as loading both models in one dtype would.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.model.anatomy import Anatomy, Tensor
from surgery.model.names.disk_names import DiskNames, read_disk_names
from surgery.model.names.weight_conversion import Conversion
from surgery.model.reader import missing_weights
from surgery.operations.initial_values import kaiming_uniform
from surgery.storage.safetensors.dtypes import HEADER_NAMES, TORCH_NAMES
from surgery.storage.safetensors.header import StoredTensor
from surgery.storage.safetensors.writer import NewTensor
from surgery.vision.components import VISION_PREFIX, Parts
from surgery.vision.projector import PROJECTOR_PATH
from surgery.vision.vision_tower import meta_vision_tower

_Source = StoredTensor | Callable[[], bytes]


def assembled_tensors(
    parts: Parts, assembled: Anatomy, dtype: str | None, seed: int
) -> Iterator[NewTensor]:
    """Return every tensor of the assembled model; only headers are read.

    Args:
        parts: The components of the model, with weights.
        assembled: Anatomy of the assembled model.
        dtype: Torch's name of the decoder's dtype; None for float32.
        seed: Seed of the projector's initialization.

    Raises:
        SurgeryError: M107 for an incomplete checkpoint, M201 to M208 for its files.
    """
    stored_as = HEADER_NAMES[dtype or "float32"]
    yield from _decoder(parts)
    yield from _tower(parts, stored_as)
    for tensor in assembled.outside:
        if tensor.name.startswith(f"{PROJECTOR_PATH}."):
            make = partial(_start, seed, tensor, stored_as)
            yield NewTensor(tensor.name, stored_as, tensor.shape, make)


def _decoder(parts: Parts) -> list[NewTensor]:
    """The decoder's tensors under their new names, in the order of their bytes on disk."""
    stored, names = read_disk_names(parts.text, parts.decoder), parts.new_names()
    tensors = []
    for old, new in names.items():
        origin = stored.origin(old)
        if origin is None:
            raise SurgeryError(missing_weights(parts.decoder, old, stored))
        first = origin.sources[0]
        tensor = NewTensor(new, origin.dtype, origin.shape, stored.source(origin))
        tensors.append((str(first.file), first.offset, tensor))
    return [tensor for _, _, tensor in sorted(tensors, key=lambda entry: entry[:2])]


def _tower(parts: Parts, dtype: str) -> Iterator[NewTensor]:
    conversion = cache(lambda: Conversion(meta_vision_tower(parts.vision)))
    checkpoint = parts.vision.checkpoint()
    stored = DiskNames(checkpoint, conversion().map_names(checkpoint.tensors), {}, conversion)
    for tensor in parts.tower.tensors:
        origin = stored.origin(tensor.name)
        if origin is None:
            raise SurgeryError(
                diagnostic(
                    "M107.vision", source=parts.vision.source, name=tensor.name, key="vision"
                )
            )
        name, source = f"{VISION_PREFIX}{tensor.name}", stored.source(origin)
        if origin.dtype == dtype or not tensor.is_parameter:
            yield NewTensor(name, origin.dtype, origin.shape, source)
        else:
            cast = partial(_cast, source, origin.dtype, dtype)
            yield NewTensor(name, dtype, origin.shape, cast)


def _start(seed: int, tensor: Tensor, dtype: str) -> bytes:
    """Initial values: torch's default for linear weights, zero biases, ones for norms."""
    module, _, kind = tensor.name.rpartition(".")
    if len(tensor.shape) == 2:
        rows, inputs = tensor.shape
        start = kaiming_uniform(seed, module, (rows, inputs))
    else:
        start = np.full(tensor.shape, float(kind == "weight"), np.float32)
    return _as_type(start.astype("<f4").tobytes(), "F32", dtype)


def _cast(source: _Source, dtype: str, wanted: str) -> bytes:
    if not isinstance(source, StoredTensor):
        return _as_type(source(), dtype, wanted)
    with source.file.open("rb") as file:
        file.seek(source.offset)
        return _as_type(file.read(source.nbytes), dtype, wanted)


def _as_type(content: bytes, dtype: str, wanted: str) -> bytes:
    """Round values to another dtype, as torch does."""
    if dtype == wanted:
        return content
    import torch

    tensor = torch.frombuffer(bytearray(content), dtype=getattr(torch, TORCH_NAMES[dtype]))
    raw: Any = tensor.to(getattr(torch, TORCH_NAMES[wanted])).view(torch.uint8).numpy()
    rounded: bytes = raw.tobytes()
    return rounded
