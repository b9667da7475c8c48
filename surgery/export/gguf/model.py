"""A complete model as a GGUF file, and the small files that a prompt is encoded with."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from surgery.adapter.merged_checkpoint import multimodal_files
from surgery.adapter.side_files import base_files, base_folder
from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.export.base import ExportJob, Item, WeightType
from surgery.export.file_items import copies
from surgery.export.gguf.architecture import Decoder, Values
from surgery.export.gguf.file import GgufFile, GgufTensor
from surgery.export.gguf.tokenizer import add_tokenizer
from surgery.storage.file_names import GGUF_MODEL
from surgery.storage.safetensors.checkpoint import INDEX_NAME, read_checkpoint
from surgery.storage.safetensors.lora_merge import streamed_values
from surgery.storage.safetensors.stream import Streamed, stored_chunks

if TYPE_CHECKING:
    from gguf import GGUFWriter

_COMPUTED: Final = "rotary_emb.inv_freq"
"""Ends the names of buffers that old checkpoints store and every engine computes."""


def base_tensors(job: ExportJob) -> dict[str, Streamed]:
    """The tensors of the untouched base, by name."""
    assert job.plan.files is not None
    return _of_checkpoint(job.plan.files.folder)


def multimodal_tensors(job: ExportJob) -> dict[str, Streamed]:
    """The tensors of the multimodal path, by name; LoRA is merged into them where it isn't kept."""
    if job.plan.in_place:
        return _of_checkpoint(base_folder(job.plan, job.folder))
    files = multimodal_files(job.plan, job.folder, merge=job.lora == "merge")
    return {tensor.spec[0]: tensor for file in files for tensor in file.tensors}


def _of_checkpoint(folder: Path) -> dict[str, Streamed]:
    tensors = read_checkpoint(folder).tensors
    return {
        name: Streamed((name, t.dtype, t.shape), partial(stored_chunks, t))
        for name, t in tensors.items()
    }


def model_items(
    job: ExportJob, decoder: Decoder, tensors: Mapping[str, Streamed], dtype: WeightType
) -> list[Item]:
    """Return a GGUF file, and the files of the base next to its weights.

    Args:
        job: What is exported.
        decoder: The model as llama.cpp stores it.
        tensors: Of the model, by name.
        dtype: Type of most matrices.
    """
    assert job.plan.files is not None
    folder = job.plan.files.folder

    def describe(writer: "GGUFWriter") -> None:
        writer.add_name(job.plan.recipe.name)
        decoder.describe(writer)
        add_tokenizer(writer, folder, decoder.config.vocab_size)

    found = list(_gguf_tensors(decoder, tensors))
    sides = [file for file in base_files(job.plan) if file.name != INDEX_NAME]
    file = GgufFile(GGUF_MODEL, decoder.architecture.name, dtype, found, describe)
    return [file, *copies({*sides, folder / "config.json"})]


def _gguf_tensors(decoder: Decoder, tensors: Mapping[str, Streamed]) -> Iterator[GgufTensor]:
    for name, tensor in tensors.items():
        stored_as = decoder.name(name)
        if stored_as is None:
            if name.endswith(_COMPUTED):
                continue
            kind = decoder.config.model_type
            raise SurgeryError(diagnostic("A630.tensor", name=name, model_type=kind))

        def read(name: str = name, tensor: Streamed = tensor) -> Values:
            return decoder.transformed(name, streamed_values(tensor))

        yield GgufTensor(stored_as, tuple(tensor.spec[2]), read)
    for name, values in decoder.extra_tensors().items():
        yield GgufTensor(name, values.shape, partial(np.asarray, values))
