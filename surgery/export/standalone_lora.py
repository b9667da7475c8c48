"""LoRA as a PEFT adapter of its own, on a plain checkpoint: full names, one rank, one alpha.

Qualcomm's tools take PEFT adapters that share their attachment points and their largest rank, with
alpha as an input (docs.qualcomm.com, 80-63442-10, LoRA v2 and v3). A pair of a smaller rank is
filled up with zeros, and one of another scale has the ratio of both in its B.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from surgery.adapter.side_files import adapter_config, adapter_name
from surgery.export.file_items import Content, Weights, json_content
from surgery.operations.edits import AddedTensor, AddLora
from surgery.plan.planner import Plan
from surgery.storage.file_names import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from surgery.storage.safetensors.header import StoredTensor, read_header
from surgery.storage.safetensors.lora_merge import fp32_values
from surgery.storage.safetensors.stream import Streamed, stored_chunks

_REPLACED: Final = ("use_rslora", "modules_to_save", "rank_pattern", "alpha_pattern", "revision")


def lora_files(plan: Plan, folder: Path, base: str) -> tuple[Weights, Content]:
    """Return the two files of the adapter; nothing is read but a header.

    Args:
        plan: with LoRA.
        folder: the adapter folder that it comes from.
        base: the checkpoint that it goes on, as its config names it.
    """
    stored = read_header(folder / ADAPTER_WEIGHTS)
    tensors = tuple(_tensors(plan, stored))
    return Weights(ADAPTER_WEIGHTS, tensors), json_content(ADAPTER_CONFIG, _config(plan, base))


def _config(plan: Plan, base: str) -> dict[str, Any]:
    config = adapter_config(plan)
    kept = {name: value for name, value in config.items() if name not in _REPLACED}
    rank, scale = _shape(plan)
    own = {"r": rank, "lora_alpha": rank * scale, "base_model_name_or_path": base}
    return {**kept, **own}


def _shape(plan: Plan) -> tuple[int, float]:
    """The rank and the scale of all pairs."""
    return max(lora.rank for lora in plan.loras()), plan.loras()[0].scale


def _tensors(plan: Plan, stored: Mapping[str, StoredTensor]) -> Iterator[Streamed]:
    rank, scale = _shape(plan)
    for lora in plan.loras():
        for tensor in lora.tensors:
            own = stored[adapter_name(tensor)]
            yield _streamed(lora, tensor, own, rank, lora.scale / scale)


def _streamed(
    lora: AddLora, tensor: AddedTensor, own: StoredTensor, rank: int, ratio: float
) -> Streamed:
    axis = {"A": 0, "B": 1}.get(tensor.name.removesuffix(".weight")[-1], -1)
    factor = ratio if axis == 1 else 1.0
    if axis < 0 or (lora.rank == rank and factor == 1.0):
        return Streamed((own.name, own.dtype, own.shape), partial(stored_chunks, own))
    shape = (rank, own.shape[1]) if axis == 0 else (own.shape[0], rank)
    return Streamed((own.name, "F32", shape), _filled(own, shape, factor))


def _filled(own: StoredTensor, shape: tuple[int, int], factor: float) -> Callable[[], Any]:
    def chunks() -> Iterator[bytes]:
        filled = np.zeros(shape, "<f4")
        filled[: own.shape[0], : own.shape[1]] = fp32_values(own) * np.float32(factor)
        yield filled.tobytes()

    return chunks
