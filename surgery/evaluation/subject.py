"""What can be evaluated: an adapter, or an export of one as checkpoints; loaded path by path.

Imports torch through the models that it loads.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from surgery.adapter.folder import load_adapter, load_base, read_plan
from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.model.fingerprint import identify, refuse_other_base
from surgery.model.reader import read_anatomy
from surgery.model.source import find_model
from surgery.paths.switching import text_path
from surgery.runtime.formats.hf import open_path
from surgery.runtime.manifest import read_manifest
from surgery.storage.file_names import MANIFEST_FILE
from surgery.storage.inputs import Input

BASE: Final = "base"
SHARED: Final = "shared"
NON_SHARED: Final = "text"
_OPENED: Final = ("hf", "peft-lora")

_T = TypeVar("_T")
Measure = Callable[[Any, str], _T]
"""Function of a model and the name of its path."""


@dataclass(frozen=True)
class Evaluated:
    """Something with a base, a shared path and perhaps a separate text path.

    Args:
        folder: Path of the adapter or of the export.
        model: The base, as the user names it.
        recipe: Name of its recipe.
        processor_folder: Folder with the processor, and perhaps with held-out text.
        is_routed: Whether its model needs a mask of image tokens.
        inputs: Paths that are read, of the adapter or the export, and of its base.
        each: Function that loads one path after the other, calls a function with each, and yields
            what that returns.
    """

    folder: Path
    model: str
    recipe: str
    processor_folder: Path
    is_routed: bool
    inputs: tuple[Input, ...]
    each: Callable[[Measure[Any]], Iterator[Any]]


def open_evaluated(
    folder: Path, *, base: str | os.PathLike[str] | None = None, trust_remote_code: bool = False
) -> Evaluated:
    """Read an adapter or an export; no weights are loaded.

    Args:
        folder: Path of an adapter, or of an export in the form `hf` or `peft-lora`.
        base: Path or hub id of the base; the one that the plan or the manifest names by default.
        trust_remote_code: Whether the model may run its own Python code; False by default.

    Raises:
        SurgeryError: A401 for another base, A402 for an adapter, A601 and A606 for an export, M
            for the base.
    """
    if os.path.isfile(folder / MANIFEST_FILE):
        return _export(folder, base, trust_remote_code)
    return _adapter(folder, base, trust_remote_code)


def _adapter(folder: Path, base: str | os.PathLike[str] | None, trust: bool) -> Evaluated:
    plan, _ = read_plan(folder, base, trust_remote_code=trust)
    assert plan.files is not None
    processor_folder = plan.files.folder

    def each(measure: Measure[_T]) -> Iterator[_T]:
        yield measure(load_base(str(processor_folder), trust_remote_code=trust), BASE)
        model = load_adapter(folder, base=base, trust_remote_code=trust)
        yield measure(model, SHARED)
        if plan.has_text_path:
            with text_path(model):
                yield measure(model, NON_SHARED)

    source, recipe = plan.anatomy.source, plan.recipe.name
    inputs = Input(folder, "the adapter"), *plan.inputs()
    return Evaluated(folder, source, recipe, processor_folder, plan.is_routed, inputs, each)


def _export(folder: Path, base: str | os.PathLike[str] | None, trust: bool) -> Evaluated:
    manifest = read_manifest(folder)
    if manifest.format not in _OPENED:
        raise SurgeryError(diagnostic("A606", folder=folder, format=manifest.format))
    is_assembled = bool(manifest.recipe.get("vision"))  # from a decoder, which is the base for text
    model = manifest.recipe["model"] if is_assembled else manifest.model
    files = find_model(base or model)
    source = files.folder
    if not is_assembled:  # its fingerprint covers decoder and tower together
        found = identify(files, read_anatomy(files, trust_remote_code=trust))
        refuse_other_base(manifest.fingerprint, found, files.source)
    processor_folder = (
        folder / manifest.paths["multimodal"][0] if is_assembled else source
    )  # where the processor is

    def each(measure: Measure[_T]) -> Iterator[_T]:
        yield measure(load_base(str(source), trust_remote_code=trust), BASE)
        multimodal = open_path(folder, manifest, "multimodal", trust_remote_code=trust)
        yield measure(multimodal, SHARED)
        if manifest.base == "shared":
            yield measure(multimodal, NON_SHARED)
            return
        del multimodal
        text = open_path(folder, manifest, "text", trust_remote_code=trust)
        yield measure(text, NON_SHARED)

    inputs = Input(folder, "the export"), Input(source, "the base")
    return Evaluated(folder, manifest.model, manifest.name, processor_folder, False, inputs, each)
