"""From a model's name to its anatomy: config on the meta device once, a cache after that.

The first reading of a config imports torch and builds the model without weights. The result is kept
under the config's hash, so that every later plan answers without torch. Weights, where there are
any, are then asked for what only they know: the type of each tensor.
"""

import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from surgery.anatomy import Anatomy, BlockKind, Tensor
from surgery.checkpoint import Checkpoint
from surgery.diagnostic import Diagnostic, SurgeryError
from surgery.model import ModelFiles, find_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FORMAT: Final = "1"
_FLOATS: Final = ("F32", "F16", "BF16")


def cache_folder() -> Path:
    """Where anatomies are kept: `$SURGERY_CACHE`, or `surgery` in the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SURGERY_CACHE") or Path(home) / "surgery")


def read_anatomy(
    model: "str | ModelFiles | PreTrainedModel",
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Anatomy:
    """Return the anatomy of a model; no weight is loaded.

    Args:
        model: `builtin/NAME`, a folder, a hub id, or a transformers model in memory.
        revision: a branch, tag or commit of a hub id.
        trust_remote_code: whether a model may run Python code of its own.

    Raises:
        SurgeryError: M101 to M109, where the model is missing, unreadable or no decoder.
    """
    if isinstance(model, str):
        model = find_model(model, revision=revision)
    if not isinstance(model, ModelFiles):
        from surgery.dissect import dissect

        return dissect(model, model.config.name_or_path or type(model).__name__)
    anatomy = _cached(model, trust_remote_code)
    return _as_stored(anatomy, model.checkpoint()) if model.has_weights else anatomy


def _cached(files: ModelFiles, trust_remote_code: bool) -> Anatomy:
    kept = cache_folder() / "anatomy" / f"{_key(files)}.json"
    try:
        anatomy = Anatomy.model_validate_json(kept.read_bytes())
    except (OSError, ValueError):
        anatomy = _on_meta(files, trust_remote_code)
        _keep(kept, anatomy)
    return anatomy.model_copy(update={"source": files.source})


def _key(files: ModelFiles) -> str:
    config = json.dumps(files.config(), sort_keys=True)
    parts = (_FORMAT, version("transformers"), config)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _keep(kept: Path, anatomy: Anatomy) -> None:
    """Write the cache entry whole or not at all; a cache that can't be written is no error."""
    partial = kept.with_suffix(f".{os.getpid()}")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(anatomy.model_dump_json())
        partial.replace(kept)
    except OSError:
        partial.unlink(missing_ok=True)


def _on_meta(files: ModelFiles, trust_remote_code: bool) -> Anatomy:
    import torch

    from surgery.dissect import dissect

    config = _config(files, trust_remote_code)
    dtype = config.get_text_config(decoder=True).dtype or config.dtype or torch.float32
    quantization = config.__dict__.pop("quantization_config", None)
    try:
        with torch.device("meta"):
            model = _auto_class(config).from_config(
                config, dtype=dtype, trust_remote_code=trust_remote_code
            )
    except Exception as error:  # a config may be wrong in as many ways as there are classes
        raise SurgeryError(_does_not_build(files.source, error)) from error
    model.config.quantization_config = quantization
    return dissect(model, files.source)


def _config(files: ModelFiles, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    if "auto_map" in files.config() and not trust_remote_code:
        raise SurgeryError(_needs_remote_code(files.source))
    try:
        return AutoConfig.from_pretrained(files.folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise SurgeryError(_does_not_build(files.source, error)) from error


def _auto_class(config: Any) -> Any:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    names = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    seeing = config.model_type in names and config.get_text_config(decoder=True) is not config
    return AutoModelForImageTextToText if seeing else AutoModelForCausalLM


def _as_stored(anatomy: Anatomy, checkpoint: Checkpoint) -> Anatomy:
    """Give each tensor the type it has on disk, after checking that the shapes agree."""
    if anatomy.quantization:
        return anatomy
    kinds: dict[BlockKind, int] = {}
    sequence = []
    for index in range(anatomy.count):
        kind, prefix = anatomy.block(index), f"{anatomy.block_path(index)}."
        tensors = tuple(_stored(anatomy, t, prefix, checkpoint) for t in kind.tensors)
        stored = kind.model_copy(update={"tensors": tensors})
        sequence.append(kinds.setdefault(stored, len(kinds)))
    outside = tuple(_stored(anatomy, t, "", checkpoint) for t in anatomy.outside)
    found = {"kinds": tuple(kinds), "sequence": tuple(sequence), "outside": outside}
    return anatomy.model_copy(update=found)


def _stored(anatomy: Anatomy, tensor: Tensor, prefix: str, checkpoint: Checkpoint) -> Tensor:
    name = f"{prefix}{tensor.name}"
    aliases = [name, *(alias for alias, counted in anatomy.tied.items() if counted == name)]
    found = next((checkpoint.tensors[n] for n in aliases if n in checkpoint.tensors), None)
    if found is None:
        if not tensor.is_parameter:
            return tensor
        raise SurgeryError(_not_on_disk(anatomy, name))
    if found.shape != tensor.shape:
        raise SurgeryError(_other_shape(anatomy, name, tensor.shape, found.shape))
    if tensor.is_parameter and found.dtype not in _FLOATS:
        raise SurgeryError(_other_dtype(anatomy, name, found.dtype))
    return tensor.model_copy(update={"dtype": found.dtype})


def _needs_remote_code(source: str) -> Diagnostic:
    return Diagnostic(
        code="M105",
        what=f"`{source}` runs Python code of its own",
        why="its config.json has an `auto_map`, and code from a checkpoint is off by default",
        fix="read that code, then add `--trust-remote-code`",
        key="model",
    )


def _does_not_build(source: str, error: Exception) -> Diagnostic:
    return Diagnostic(
        code="M104",
        what=f"transformers {version('transformers')} can't build `{source}` from its config",
        why=f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}",
        fix="check config.json; a newer model type may need a newer transformers",
        key="model",
    )


def _not_on_disk(anatomy: Anatomy, name: str) -> Diagnostic:
    return Diagnostic(
        code="M107",
        what=f"the files of `{anatomy.source}` hold no tensor `{name}`",
        why=f"{anatomy.class_name} has it in memory; the checkpoint stores another layout, "
        "or is not complete",
        fix="load it with transformers and `save_pretrained` it again, then name the new folder",
        key="model",
    )


def _other_shape(
    anatomy: Anatomy, name: str, wanted: tuple[int, ...], found: tuple[int, ...]
) -> Diagnostic:
    return Diagnostic(
        code="M108",
        what=f"`{name}` of `{anatomy.source}` is {list(found)} on disk and {list(wanted)} by its "
        "config.json",
        why="the config and the weights belong to different models",
        fix="take both from the same checkpoint",
        key="model",
    )


def _other_dtype(anatomy: Anatomy, name: str, found: str) -> Diagnostic:
    return Diagnostic(
        code="M109",
        what=f"`{name}` of `{anatomy.source}` is stored as {found}",
        why=f"weights are copied and trained as {', '.join(_FLOATS)}, and the config names no "
        "quantisation method",
        fix="name a checkpoint in bf16, fp16 or fp32",
        key="model",
    )
