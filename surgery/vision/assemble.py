"""A vision tower, a projector and a decoder assembled into one multimodal model, disk to disk.

The model is transformers' Llava, or the class in `model/remote_models` where Llava lacks the
projector. The decoder's tensors are renamed and keep their bytes.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.model.anatomy import Anatomy
from surgery.model.names.disk_names import DiskNames
from surgery.model.names.weight_conversion import NameMap
from surgery.model.quiet import quiet
from surgery.model.reader import read_anatomy, with_stored_dtypes
from surgery.model.remote_code import remote_file
from surgery.model.source import ModelFiles
from surgery.recipe.schema import Recipe
from surgery.storage.atomic_text import replace_bytes
from surgery.storage.cache import cache_folder
from surgery.storage.disk_errors import check_free_space, io_errors
from surgery.storage.inputs import Input
from surgery.storage.safetensors.checkpoint import Checkpoint, Progress
from surgery.storage.safetensors.header import StoredTensor
from surgery.storage.safetensors.shards import Shard, make_shards, shard_index, write_shards
from surgery.storage.safetensors.writer import copy_file
from surgery.storage.staging import staged_folder
from surgery.vision.components import Parts, find_parts, refuse_other_decoder
from surgery.vision.image_token import read_tokenizer, take_image_token
from surgery.vision.processor import make_processor
from surgery.vision.projector import Projector
from surgery.vision.tensors import assembled_tensors

ASSEMBLY_FILE: Final = "assembly.json"
"""File next to the checkpoint that says what it was assembled of."""

_FORMAT: Final = "1"
_FILE_KEYS: Final = ("_name_or_path", "transformers_version", "architectures")


@dataclass(frozen=True)
class Assembly:
    """An assembled model that is ready to be written.

    Args:
        source: Name of the assembled model, for diagnostics.
        config: Content of config.json.
        shards: Weight files.
        processor: Processor of transformers, with the decoder's tokenizer.
        copied_files: Files that are copied unchanged.
        description: Content of assembly.json.
        inputs: Paths that the model is read from.
    """

    source: str
    config: dict[str, Any]
    shards: tuple[Shard, ...]
    processor: Any
    copied_files: tuple[Path, ...]
    description: dict[str, Any]
    inputs: tuple[Input, ...]

    @property
    def size(self) -> int:
        """Size of the weight files in bytes, headers included."""
        return sum(shard.size for shard in self.shards)

    def document(self, folder: Path) -> dict[str, Any]:
        """Return the JSON document of `surgery assemble --format json`: sources and location."""
        return {**self.description, "folder": str(folder), "bytes": {"weights": self.size}}

    def write_folder(
        self, out: Path, *, overwrite: bool = False, progress: Progress | None = None
    ) -> None:
        """Write the complete model to a new folder, or leave none behind.

        Args:
            out: Path of the folder to make.
            overwrite: Whether to replace a folder that `surgery` wrote; False by default.
            progress: Progress callback for the bytes of each step, which add up to `size`.

        Raises:
            SurgeryError: A301 to A305 for the disk, M201 to M208 for the files it is assembled of.
        """
        check_free_space(out, self.size)
        with staged_folder(out, overwrite=overwrite, inputs=self.inputs) as folder:
            self.write(folder, progress)

    def write(self, folder: Path, progress: Progress | None = None) -> None:
        """Write the complete model into an empty folder.

        Args:
            folder: Path of an existing empty folder.
            progress: Progress callback for the bytes of each step, which add up to `size`.

        Raises:
            SurgeryError: A302 to A304 for the disk, M201 to M208 for the files it is assembled of.
        """
        write_shards(self.shards, folder, progress)
        for name, content in shard_index(self.shards).items():
            (folder / name).write_bytes(content)
        self.processor.save_pretrained(folder)
        for file in self.copied_files:
            copy_file(file, folder / file.name)
        for name, document in (("config.json", self.config), (ASSEMBLY_FILE, self.description)):
            text = json.dumps(document, indent=2, ensure_ascii=False, sort_keys=True)
            (folder / name).write_text(f"{text}\n", encoding="utf-8")

    def as_written(self, anatomy: Anatomy) -> Anatomy:
        """Return the assembled model's anatomy with the dtype of each tensor on disk."""
        tensors = (tensor for shard in self.shards for tensor in shard.tensors)
        stored = {
            t.name: StoredTensor(t.name, t.dtype, t.shape, Path(), 0, t.nbytes) for t in tensors
        }
        names = NameMap(memory={name: name for name in stored})
        return with_stored_dtypes(
            anatomy, DiskNames(Checkpoint(Path(), (), stored), names, anatomy.tied, _never)
        )


def source_of(recipe: Recipe) -> str:
    """Name of the model that a recipe assembles, for diagnostics."""
    return f"{recipe.model} + {recipe.vision}"


def assemble_config(recipe: Recipe) -> ModelFiles:
    """Return a folder with the config of the model that a recipe assembles, without weights.

    Args:
        recipe: A recipe with `vision`.

    Raises:
        SurgeryError: M101 to M110 for the decoder, M121 to M123 for the vision tower, M125 where
            the decoder can't be the language model of another class.
    """
    parts = find_parts(recipe, weights=False)
    key = [_FORMAT, version("transformers"), parts.text.config(), parts.tower.config]
    name = hashlib.sha256(json.dumps([*key, parts.projector.name]).encode()).hexdigest()
    folder = cache_folder() / "assembled" / name
    file = folder / "config.json"
    if not file.is_file():
        with io_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            replace_bytes(file, json.dumps(_config(parts, 0)).encode())
    files = ModelFiles(source_of(recipe), folder)
    refuse_other_decoder(parts, partial(read_anatomy, files))
    return files


def prepare_assembly(recipe: Recipe) -> Assembly:
    """Check everything that a recipe's model is assembled of, and return what will be written.

    Args:
        recipe: A recipe with `vision`; both models need weights.

    Raises:
        SurgeryError: As `assemble_config`; P223 where the recipe has no `vision`, M102 for a model
            without weights, M107 for an incomplete one, M124 where no token can stand for an image.
    """
    if recipe.vision is None:
        raise SurgeryError(recipe.locate([diagnostic("P223", name=recipe.name, key="model")]))
    try:
        return _prepare_assembly(recipe)
    except SurgeryError as error:
        raise SurgeryError(recipe.locate(error.diagnostics)) from error


def _prepare_assembly(recipe: Recipe) -> Assembly:
    anatomy = read_anatomy(assemble_config(recipe))
    parts = find_parts(recipe, weights=True)
    tokenizer = read_tokenizer(parts.text.folder, parts.text.source)
    rows = next(t.shape[0] for t in anatomy.tensors() if t.name in anatomy.parts["embeddings"])
    token, number = take_image_token(tokenizer, rows, parts.text.source)
    side = parts.projector.tokens_per_side(parts.tower.grid_size)
    processor = make_processor(
        tokenizer, token, parts.tower, parts.vision.folder, side, recipe.tiles
    )
    config = _config(parts, number)
    remote = remote_file(config["model_type"])
    generation = parts.text.folder / "generation_config.json"
    copied_files = [file for file in (remote, generation) if file and file.is_file()]
    description = {name: getattr(recipe, name) for name in ("model", "vision", "projector", "seed")}
    description |= {"tiles": recipe.tiles, "tokens_a_tile": side**2}
    description |= {"image_token": token, "image_token_id": number}
    shards = tuple(make_shards(assembled_tensors(parts, anatomy, config["dtype"], recipe.seed)))
    read = Input(parts.text.folder, "the decoder"), Input(parts.vision.folder, "the vision tower")
    inputs = *recipe.inputs(), *read
    return Assembly(
        source_of(recipe), config, shards, processor, tuple(copied_files), description, inputs
    )


@quiet()
def write_assembled(
    recipe: Recipe,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write the model that a recipe assembles to a folder, disk to disk.

    Args:
        recipe: A recipe with `vision`.
        out: Path of the folder to make.
        overwrite: Whether to replace a folder that `surgery` wrote; False by default.
        progress: Progress callback for the bytes of each step, which add up to the size of the
            weights.

    Raises:
        SurgeryError: As `prepare_assembly`, before anything is written; A301 to A305 for the disk.
    """
    prepare_assembly(recipe).write_folder(Path(out), overwrite=overwrite, progress=progress)


def _config(parts: Parts, image_token: int) -> dict[str, Any]:
    from transformers import AutoConfig

    text = AutoConfig.from_pretrained(parts.text.folder)
    dtype = str(text.dtype or "float32").removeprefix("torch.")
    remote = remote_file(parts.projector.model_type)
    config: dict[str, Any] = {
        **parts.projector.fields,
        "model_type": parts.projector.model_type,
        "architectures": [f"{_class_name(parts.projector)}ForConditionalGeneration"],
        "text_config": {**_plain(text.to_diff_dict()), "dtype": dtype},
        "vision_config": {**_plain(parts.tower.config), "dtype": dtype},
        "dtype": dtype,
        "image_token_index": image_token,
        "image_seq_length": parts.projector.tokens_per_side(parts.tower.grid_size) ** 2,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default" if parts.tower.prefix_tokens else "full",
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": bool(parts.decoder.tied),
    }
    if remote is None:
        return config
    stem, name = remote.stem, _class_name(parts.projector)
    classes = {
        "AutoConfig": f"{stem}.{name}Config",
        "AutoModelForImageTextToText": f"{stem}.{name}ForConditionalGeneration",
    }
    return {**config, "auto_map": classes}


def _class_name(projector: Projector) -> str:
    """Prefix of the classes of a model type, in transformers and in `model/remote_models`."""
    return "".join(word.capitalize() for word in projector.model_type.split("_"))


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config without the keys that say where and by which version it was read."""
    return {name: config[name] for name in config if name not in _FILE_KEYS}


def _never() -> Any:
    raise AssertionError("names on disk are those in memory, so nothing is converted")
