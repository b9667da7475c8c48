"""From a model's name to its anatomy: built on the meta device once, cached afterwards.

The first reading of a config imports torch and builds the model without weights. The result is
cached under the config's hash, so that every later plan does without torch. The headers of the
weights, where there are any, then give what only they have: the dtype of each tensor.
"""

import os
from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.model.anatomy import Anatomy, BlockKind, Tensor
from surgery.model.meta_device import meta_model, refuse_remote_code
from surgery.model.names.disk_names import DiskNames, read_disk_names
from surgery.model.names.untied_embeddings import as_transformers_ties
from surgery.model.source import ModelFiles, find_model
from surgery.model.structure.inspector import inspect_model
from surgery.storage.cache import cache_folder, cached
from surgery.storage.safetensors.dtypes import FLOATS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["cache_folder", "read_anatomy"]

_FORMAT: Final = "3"


def read_anatomy(
    model: "str | os.PathLike[str] | ModelFiles | PreTrainedModel",
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Anatomy:
    """Return the anatomy of a model; no weights are loaded.

    Args:
        model: `builtin/NAME`, a folder, a hub id, or a transformers model in memory.
        revision: Branch, tag or commit of a hub id; None for the default branch.
        trust_remote_code: Whether the model may run its own Python code; False by default.

    Raises:
        SurgeryError: M101 to M110, where the model is missing, unreadable or no decoder.
    """
    if isinstance(model, str | os.PathLike):
        model = find_model(model, revision=revision)
    if not isinstance(model, ModelFiles):
        return inspect_model(model, model.config.name_or_path or type(model).__name__)
    refuse_remote_code(model, trust_remote_code)
    build = cache(partial(meta_model, model, trust_remote_code))
    anatomy = _cached(model, build)
    if not model.has_weights:
        return anatomy
    stored = read_disk_names(model, anatomy, build)
    return with_stored_dtypes(as_transformers_ties(anatomy, stored), stored)


def _cached(files: ModelFiles, build: "Callable[[], PreTrainedModel]") -> Anatomy:
    key = (_FORMAT, version("transformers"), files.config())
    anatomy = cached("anatomy", key, Anatomy, lambda: inspect_model(build(), files.source))
    return anatomy.model_copy(update={"source": files.source})


def with_stored_dtypes(anatomy: Anatomy, stored: DiskNames) -> Anatomy:
    """Give each tensor the dtype it has on disk, after checking that the shapes agree.

    Args:
        anatomy: Anatomy by the config alone.
        stored: The checkpoint under the names in memory.

    Raises:
        SurgeryError: M107 to M109, where the checkpoint doesn't fit the config.
    """
    if anatomy.quantization:
        return anatomy
    kinds: dict[BlockKind, int] = {}
    sequence = []
    for index in range(anatomy.count):
        kind, prefix = anatomy.block(index), f"{anatomy.block_path(index)}."
        tensors = tuple(_stored(anatomy, t, prefix, stored) for t in kind.tensors)
        with_dtypes = kind.model_copy(update={"tensors": tensors})
        sequence.append(kinds.setdefault(with_dtypes, len(kinds)))
    outside = tuple(_stored(anatomy, t, "", stored) for t in anatomy.outside)
    found = {"kinds": tuple(kinds), "sequence": tuple(sequence), "outside": outside}
    return anatomy.model_copy(update=found)


def _stored(anatomy: Anatomy, tensor: Tensor, prefix: str, stored: DiskNames) -> Tensor:
    name = f"{prefix}{tensor.name}"
    found = stored.origin(name)
    if found is None:
        if not tensor.is_parameter:
            return tensor
        raise SurgeryError(missing_weights(anatomy, name, stored))
    if found.shape != tensor.shape:
        raise SurgeryError(
            diagnostic(
                "M108",
                name=name,
                source=anatomy.source,
                found=list(found.shape),
                wanted=list(tensor.shape),
                key="model",
            )
        )
    if tensor.is_parameter and found.dtype not in FLOATS:
        raise SurgeryError(
            diagnostic(
                "M109",
                name=name,
                source=anatomy.source,
                found=found.dtype,
                floats=list(FLOATS),
                key="model",
            )
        )
    return tensor.model_copy(update={"dtype": found.dtype})


def missing_weights(anatomy: Anatomy, name: str, stored: DiskNames) -> Diagnostic:
    """The diagnostic for a checkpoint that lacks the tensor in memory `name`."""
    parameters = (t.name for t in anatomy.tensors() if t.is_parameter and t.name != name)
    others = sum(stored.origin(parameter) is None for parameter in parameters)
    failed = stored.names.failed.get(name)
    more = f" (and {others} more)" if others else ""
    return diagnostic(
        "M107.not_converted" if failed else "M107.missing",
        source=anatomy.source,
        name=name,
        others=more,
        class_name=anatomy.class_name,
        reason=failed,
        key="model",
    )
