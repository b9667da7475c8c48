"""Check that a base is the one that an adapter was made for.

Plain PEFT opens an adapter on any base of the right shapes. The folder therefore records the base's
config, the names, dtypes and shapes of its tensors, a sample of every tensor's bytes, on request
all bytes, and the first values of one matrix, which a user without `surgery` can compare in one
line.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.model.anatomy import Anatomy
from surgery.model.names.disk_names import DiskNames, read_disk_names
from surgery.model.source import ModelFiles
from surgery.storage.safetensors.checkpoint import Progress, fingerprint
from surgery.storage.safetensors.dtypes import FLOATS, numpy_type
from surgery.storage.safetensors.header import StoredTensor

if TYPE_CHECKING:
    from torch import nn

_PROBED: Final = 4
UNWRITTEN: Final = {"tensors": "0" * 64, "order": "0" * 64}
"""Placeholder, of the same length, for the layout of an adapter's weights before they exist."""
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_DIFFERENCES: Final = {
    "config": "its config.json differs",
    "tensors": "its tensors have other names, types or shapes",
    "sample": "its weights have other values",
    "strided": "its weights have other values",
    "checksum": "its weights have other values",
}


class _Probe(BaseModel):
    tensor: str
    values: list[float]


class _Layout(BaseModel):
    tensors: _Sha256
    order: _Sha256


class _Fingerprint(BaseModel):
    """The recorded fingerprint of a base; `strided` is absent in older ones."""

    model_config = ConfigDict(strict=True)

    config: _Sha256 | None
    tensors: _Sha256
    sample: _Sha256
    strided: _Sha256 | None = None
    checksum: _Sha256 | None
    probe: _Probe | None
    adapter: _Layout | None = None


def identify(
    files: ModelFiles,
    anatomy: Anatomy,
    *,
    checksum: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any] | None:
    """Return the fingerprint of a base, or None where its weights are not on this disk.

    Its key `adapter` is for `weights_layout` of the adapter that is written.

    Args:
        files: Files of the base.
        anatomy: Anatomy of the base.
        checksum: Whether to read every byte; False by default.
        progress: Progress callback for the bytes read for the checksum.
    """
    if not files.has_weights:
        return None
    stored = read_disk_names(files, anatomy)
    found = fingerprint(stored.checkpoint, checksum=checksum, progress=progress)
    return {**found, "probe": _probe(anatomy, stored), "adapter": UNWRITTEN}


def refuse_bad_fingerprint(found: object, file: Path) -> None:
    """Refuse a fingerprint in plan.json that is malformed.

    Args:
        found: The recorded fingerprint.
        file: Path of that plan.json.

    Raises:
        SurgeryError: A422.
    """
    try:
        _Fingerprint.model_validate(found)
    except ValidationError as error:
        key = ".".join(("model", "fingerprint", *map(str, error.errors()[0]["loc"])))
        raise SurgeryError(diagnostic("A422", file=file, setting=key)) from error


def refuse_other_base(recorded: dict[str, Any], found: dict[str, Any] | None, source: str) -> None:
    """Compare two fingerprints.

    Args:
        recorded: Fingerprint in the adapter's plan.json.
        found: Fingerprint of the given base; None where it has no weights.
        source: Name of that base, for the message.

    Raises:
        SurgeryError: A401, if they differ under a key that both have.
    """
    for key, difference in _DIFFERENCES.items():
        if found and recorded.get(key) and found.get(key) and recorded[key] != found[key]:
            raise SurgeryError(diagnostic("A401", source=source, difference=difference))


def refuse_other_model(recorded: dict[str, Any] | None, model: "nn.Module", source: str) -> None:
    """Compare a model in memory with a fingerprint by the recorded values of one matrix.

    Raises:
        SurgeryError: A401, if the values differ by more than the model's precision.
    """
    probe = (recorded or {}).get("probe")
    if not probe:
        return
    import torch

    weights = dict(model.named_parameters()).get(probe["tensor"])
    if weights is None or weights.is_meta:
        return
    values = torch.tensor(probe["values"]).to(weights.dtype)
    if not torch.equal(weights.detach().flatten()[: len(values)].cpu(), values):
        raise SurgeryError(diagnostic("A401", source=source, difference=_DIFFERENCES["sample"]))


def _probe(anatomy: Anatomy, stored: DiskNames) -> dict[str, Any] | None:
    """Name and first values of the first matrix of the last block that is stored unconverted.

    A fine-tune of any kind has most likely changed it.
    """
    last = anatomy.count - 1
    matrices = (t.name for t in anatomy.block(last).tensors if len(t.shape) > 1)
    for name in (f"{anatomy.block_path(last)}.{matrix}" for matrix in matrices):
        origin = stored.origin(name)
        if origin and not origin.is_converted and (values := _first_values(origin.sources[0])):
            return {"tensor": name, "values": values}
    return None


def _first_values(tensor: StoredTensor) -> list[float] | None:
    import numpy as np

    if tensor.dtype not in FLOATS:
        return None
    stored_as = numpy_type(tensor.dtype)
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.offset)
        raw = stream.read(min(_PROBED * stored_as.itemsize, tensor.nbytes))
    return [float(value) for value in np.frombuffer(raw, stored_as)]
