"""The tensors in the weight files of an adapter folder, and their order.

Both are recorded in plan.json when a folder is written, because the header assigns bytes to
tensors: with a changed name or dtype, the same bytes are another model.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from surgery.adapter.side_files import adapter_specs, base_folder
from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.model.reader import read_anatomy
from surgery.plan.planner import Plan
from surgery.storage.file_names import ADAPTER_WEIGHTS, BASE_FOLDER, PLAN_FILE
from surgery.storage.json_file import digest
from surgery.storage.safetensors.checkpoint import read_checkpoint
from surgery.storage.safetensors.dtypes import FLOATS
from surgery.storage.safetensors.header import StoredTensor, read_header

_SAVED_FIRST: Final = ("U64", "I64", "F64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16")
"""Order of dtypes in which safetensors' own `save_file` writes (safetensors 0.8)."""


def weights_layout(plan: Plan, folder: Path) -> dict[str, str]:
    """Return two SHA-256 in hex: of names, dtypes and shapes, and of the order of the bytes.

    Args:
        plan: The folder's plan.
        folder: Path of an adapter folder with its weights.

    Raises:
        SurgeryError: M201 to M208 for an incomplete file.
    """
    headers = dict(_headers(plan, folder))
    specs = {
        name: sorted([t.name, t.dtype, list(t.shape)] for t in tensors)
        for name, tensors in headers.items()
    }
    return {"tensors": digest(specs), "order": digest({n: _names(h) for n, h in headers.items()})}


def has_weights(plan: Plan, folder: Path) -> bool:
    """Whether the files of the weights that a plan changes are in an adapter folder."""
    is_packed = plan.is_plain or os.path.lexists(folder / ADAPTER_WEIGHTS)
    return is_packed and (
        not plan.in_place or any(base_folder(plan, folder).glob("model*.safetensors*"))
    )


def check_weights(
    plan: Plan,
    folder: Path,
    recorded: dict[str, Any] | None = None,
    *,
    trust_remote_code: bool = False,
) -> None:
    """Refuse weights that aren't the plan's, which PEFT and transformers load with a warning.

    Args:
        plan: The folder's plan.
        folder: Path of an adapter folder.
        recorded: Result of `weights_layout` when the folder was written; None for older folders.
        trust_remote_code: Whether the base may run its own Python code; False by default.

    Raises:
        SurgeryError: A402 for other tensors or shapes; A421 for other dtypes, another order or
            further weights; M201 to M208 for an incomplete file.
    """
    if differ := list(_differing(plan, folder, trust_remote_code)):
        raise SurgeryError(
            diagnostic(
                "A402.other_weights",
                folder=folder,
                plan_file=PLAN_FILE,
                count=len(differ),
                name=differ[0],
            )
        )
    if surplus := next(_surplus(plan, folder), None):
        raise SurgeryError(
            diagnostic("A421.surplus", folder=folder, plan_file=PLAN_FILE, name=surplus)
        )
    headers = dict(_headers(plan, folder))
    packed = [] if plan.is_plain or plan.in_place else headers[ADAPTER_WEIGHTS]
    if odd := next((t for t in packed if t.dtype not in ("F64", *FLOATS)), None):
        raise SurgeryError(_other_layout(folder, f"`{odd.name}` is stored as {odd.dtype}"))
    found = weights_layout(plan, folder) if recorded else {}
    if recorded and recorded.get("tensors") != found["tensors"]:
        raise SurgeryError(_other_layout(folder, "a dtype of its tensors has changed"))
    resaved = all(
        _names(tensors) == _names(sorted(tensors, key=_saved_at)) for tensors in headers.values()
    )
    if recorded and recorded.get("order") != found["order"] and not resaved:
        raise SurgeryError(_other_layout(folder, "its tensors are in another order"))


def _headers(plan: Plan, folder: Path) -> Iterator[tuple[str, list[StoredTensor]]]:
    """The tensors of each weight file in the order of their bytes, by file name."""
    if not plan.is_plain:
        yield ADAPTER_WEIGHTS, list(read_header(folder / ADAPTER_WEIGHTS).values())
    if plan.in_place:
        checkpoint = read_checkpoint(base_folder(plan, folder))
        for file in checkpoint.files:
            tensors = [t for t in checkpoint.tensors.values() if t.file == file]
            yield file.relative_to(folder).as_posix(), tensors


def _differing(plan: Plan, folder: Path, trust_remote_code: bool) -> Iterator[str]:
    if plan.in_place:
        location = str(base_folder(plan, folder))
        found = read_anatomy(location, trust_remote_code=trust_remote_code)
        yield from sorted(dict(found.sizes.items() ^ plan.result.sizes.items()))
    if not plan.is_plain:
        stored = {(t.name, t.shape) for t in read_header(folder / ADAPTER_WEIGHTS).values()}
        yield from sorted(dict(stored ^ {(n, shape) for n, _, shape in adapter_specs(plan)}))


def _surplus(plan: Plan, folder: Path) -> Iterator[str]:
    """Weight files that don't belong to the plan."""
    if plan.is_plain:
        yield from (ADAPTER_WEIGHTS for _ in folder.glob(ADAPTER_WEIGHTS))
    own = base_folder(plan, folder) if plan.in_place else None
    for location in (folder, folder / BASE_FOLDER):
        if location != own:
            found = location.glob("model*.safetensors*")
            yield from (str(file.relative_to(folder)) for file in sorted(found))


def _saved_at(tensor: StoredTensor) -> tuple[int, str]:
    """Sort key of safetensors' own `save_file`."""
    known = tensor.dtype in _SAVED_FIRST
    return _SAVED_FIRST.index(tensor.dtype) if known else len(_SAVED_FIRST), tensor.name


def _names(tensors: Iterable[StoredTensor]) -> list[str]:
    return [tensor.name for tensor in tensors]


def _other_layout(folder: Path, difference: str) -> Diagnostic:
    return diagnostic("A421.header", folder=folder, difference=difference)
