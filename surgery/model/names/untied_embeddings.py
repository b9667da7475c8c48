"""Embeddings that a config calls tied and a checkpoint stores twice, with different values.

transformers follows the checkpoint: it ties the two only where they are equal
(`PreTrainedModel.tie_weights`, transformers 5.17 to 5.23).
"""

import os
from typing import Final

from surgery.model.anatomy import Anatomy, Tensor
from surgery.model.names.disk_names import DiskNames
from surgery.storage.json_file import open_regular
from surgery.storage.safetensors.header import StoredTensor, read_errors

_CHUNK: Final = 4 << 20


def as_transformers_ties(anatomy: Anatomy, stored: DiskNames) -> Anatomy:
    """Untie the head where the checkpoint has one that differs from the embeddings.

    Args:
        anatomy: Anatomy by the config alone.
        stored: The checkpoint under the names in memory.

    Raises:
        SurgeryError: M201 or M207 where a file can't be read.
    """
    shared = {*anatomy.parts.get("embeddings", ())} & {*anatomy.parts.get("head", ())}
    untied = [
        alias
        for alias, counted in anatomy.tied.items()
        if counted in shared and _differ(stored, alias, counted)
    ]
    if not untied:
        return anatomy
    shapes = {tensor.name: tensor for tensor in anatomy.outside}
    own = [_own(shapes[anatomy.tied[alias]], alias) for alias in untied]
    head = (*(name for name in anatomy.parts["head"] if name not in shared), *untied)
    changed = {
        "outside": (*anatomy.outside, *own),
        "tied": {alias: c for alias, c in anatomy.tied.items() if alias not in untied},
        "parts": {**anatomy.parts, "head": head},
    }
    return anatomy.model_copy(update=changed)


def _own(counted: Tensor, alias: str) -> Tensor:
    return counted.model_copy(update={"name": alias})


def _differ(stored: DiskNames, alias: str, counted: str) -> bool:
    """Whether both are stored, each under its own name, with different bytes."""
    tensors = [
        stored.checkpoint.tensors[n[0]] for n in map(stored.names.disk.get, (alias, counted)) if n
    ]
    if len(tensors) < 2:
        return False
    first, second = tensors
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return True
    offsets = range(0, first.nbytes, _CHUNK)
    return any(_chunk(first, at) != _chunk(second, at) for at in offsets)


def _chunk(tensor: StoredTensor, at: int) -> bytes:
    with read_errors(tensor.file), open_regular(tensor.file) as stream:
        return os.pread(stream.fileno(), min(_CHUNK, tensor.nbytes - at), tensor.offset + at)
