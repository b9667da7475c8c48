"""The language model out of a model that `surgery assemble` made: the same bytes, its own names."""

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from surgery.adapter.side_files import base_files
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.export.base import Item
from surgery.export.file_items import Content, Weights, contents_of, copies, json_content
from surgery.model.anatomy import Anatomy
from surgery.model.names.disk_names import read_disk_names
from surgery.model.reader import missing_weights, read_anatomy
from surgery.model.source import ModelFiles
from surgery.plan.planner import Plan
from surgery.storage.safetensors.shards import make_shards, shard_index
from surgery.storage.safetensors.stream import streamed
from surgery.storage.safetensors.writer import NewTensor
from surgery.vision.assemble import ASSEMBLY_FILE
from surgery.vision.components import HEAD, LANGUAGE_PREFIX

_REPLACED: Final = ("config.json", "model.safetensors.index.json", "processor_config.json")
_TOKENIZER: Final = "tokenizer_config.json"


def is_assembled(files: ModelFiles) -> bool:
    """Whether a model is one that `surgery assemble` made."""
    return (files.folder / ASSEMBLY_FILE).is_file()


def language_model(plan: Plan) -> list[Item]:
    """Return the files of the language model alone; nothing is read but headers.

    Args:
        plan: on an assembled model.

    Raises:
        SurgeryError: M104 where transformers can't build it, M107 where a tensor is missing.
    """
    assert plan.files is not None
    config: dict[str, Any] = plan.files.config()["text_config"]
    decoder = _decoder(plan.files.source, config)
    shards = make_shards(_tensors(plan, decoder))
    named = {**config, "architectures": [decoder.class_name]}
    others = [f for f in base_files(plan) if f.name not in _REPLACED and f.suffix != ".py"]
    return [
        *(Weights(shard.name, tuple(map(streamed, shard.tensors))) for shard in shards),
        json_content("config.json", named),
        *contents_of(shard_index(shards)),
        *(_of_a_tokenizer(f) for f in others if f.name == _TOKENIZER),
        *copies(f for f in others if f.name != _TOKENIZER),
    ]


def _of_a_tokenizer(file: Path) -> Content:
    """A tokenizer's config that doesn't ask for the processor of the complete model."""
    config: dict[str, Any] = json.loads(file.read_bytes())
    config.pop("processor_class", None)
    return json_content(file.name, config)


def _decoder(source: str, config: dict[str, Any]) -> Anatomy:
    with TemporaryDirectory() as folder:
        json_content("config.json", config).write(Path(folder), None)
        return read_anatomy(ModelFiles(source, Path(folder)))


def _tensors(plan: Plan, decoder: Anatomy) -> Iterator[NewTensor]:
    assert plan.files is not None
    stored = read_disk_names(plan.files, plan.anatomy)
    root = f"{decoder.blocks_path.partition('.')[0]}."
    for tensor in decoder.tensors():
        name = tensor.name
        stored_name = LANGUAGE_PREFIX + name.removeprefix(root) if name.startswith(root) else HEAD
        origin = stored.origin(stored_name)
        if origin is None:
            raise SurgeryError(missing_weights(plan.anatomy, stored_name, stored))
        yield NewTensor(name, origin.dtype, origin.shape, stored.source(origin))
