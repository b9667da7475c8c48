"""Whether a base is the one that an adapter was made for.

Plain PEFT opens an adapter on any base of the right shapes. The folder therefore records the base's
config, the names, types and shapes of its tensors, a sample of every tensor's bytes, on request all
bytes, and the first numbers of one matrix, which a user without `surgery` can compare in one line.
"""

from typing import TYPE_CHECKING, Any, Final

from surgery.anatomy import Anatomy
from surgery.checkpoint import Progress, fingerprint
from surgery.diagnostic import Diagnostic, SurgeryError
from surgery.header import StoredTensor
from surgery.model import ModelFiles
from surgery.stored import Stored, read_stored

if TYPE_CHECKING:
    from torch import nn

_PROBED: Final = 4
_SAID: Final = {
    "config": "its config.json differs",
    "tensors": "its tensors have other names, types or shapes",
    "sample": "its weights are other numbers",
    "checksum": "its weights are other numbers",
}


def identify(
    files: ModelFiles,
    anatomy: Anatomy,
    *,
    checksum: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any] | None:
    """Return the fingerprint of a base, or None where its weights are not here.

    Args:
        files: where the base is.
        anatomy: its map.
        checksum: whether to read every byte.
        progress: told of the bytes read for the checksum.
    """
    if not files.has_weights:
        return None
    stored = read_stored(files, anatomy)
    found = fingerprint(stored.checkpoint, checksum=checksum, progress=progress)
    return {**found, "probe": _probe(anatomy, stored)}


def refuse_other_base(recorded: dict[str, Any], found: dict[str, Any] | None, source: str) -> None:
    """Compare two fingerprints.

    Args:
        recorded: what the adapter's plan.json holds.
        found: of the base at hand; None where it has no weights.
        source: what to call that base.

    Raises:
        SurgeryError: A401, if they differ in anything that both know.
    """
    for key, difference in _SAID.items():
        if found and recorded.get(key) and found.get(key) and recorded[key] != found[key]:
            raise SurgeryError(_other_base(source, difference))


def refuse_other_model(recorded: dict[str, Any] | None, model: "nn.Module", source: str) -> None:
    """Compare a model in memory with a fingerprint by the numbers that it records of one matrix.

    Raises:
        SurgeryError: A401, if the numbers differ by more than the model's precision.
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
        raise SurgeryError(_other_base(source, _SAID["sample"]))


def _probe(anatomy: Anatomy, stored: Stored) -> dict[str, Any] | None:
    """The first matrix of the last block that is stored as it is in memory, by its name there.

    A fine-tune of any kind has most likely moved it.
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

    width = {"BF16": 2, "F16": 2, "F32": 4}.get(tensor.dtype)
    if width is None:
        return None
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.offset)
        raw = stream.read(min(_PROBED * width, tensor.nbytes))
    if tensor.dtype == "BF16":
        wide = np.frombuffer(raw, "<u2").astype("<u4") << 16
        return [float(value) for value in wide.view("<f4")]
    return [float(v) for v in np.frombuffer(raw, "<f2" if tensor.dtype == "F16" else "<f4")]


def _other_base(source: str, difference: str) -> Diagnostic:
    return Diagnostic(
        code="A401",
        what=f"`{source}` is not the base that this adapter was made for",
        why=difference,
        fix="name the base in plan.json, or make the adapter anew with `surgery apply` on this one",
    )
