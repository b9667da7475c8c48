"""The files next to the weights of an adapter folder, and the size of what `apply` writes.

All of it follows from the plan and the base's fingerprint, so a plan knows to the byte what
applying it will write.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from surgery.adapter.depth_checkpoint import depth_config, depth_shards
from surgery.adapter.model_card import model_card
from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.model.fingerprint import identify
from surgery.operations.edits import PEFT_PREFIX, AddedTensor, AddLora
from surgery.plan.planner import Plan
from surgery.plan.serialization import plan_document, to_json
from surgery.storage.atomic_text import replace_text
from surgery.storage.disk_errors import io_errors
from surgery.storage.file_names import (
    ADAPTER_CONFIG,
    BASE_FOLDER,
    CARD_FILE,
    PLAN_FILE,
    RECIPE_FILE,
    ROUTED_TYPE,
)
from surgery.storage.safetensors.shards import shard_index
from surgery.storage.safetensors.writer import Spec, file_size

_OWNERS_OF_A_PLAN: Final = (ADAPTER_CONFIG, "config.json", "manifest.json")
"""Files by which a plan.json belongs to an adapter or an export."""
_NO_TARGET: Final = "dummy-target-modules"  # PEFT's own word for "no LoRA anywhere"
_COPIED_FILES: Final = (
    "config.json",
    "model.safetensors.index.json",
    "generation_config.json",
    "*token*.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.jinja",
    "chat_template.json",
    "*processor_config.json",
    "*.py",
)
REWRITTEN: Final = ("config.json", "model.safetensors.index.json")
"""Files of a checkpoint that change with its weights."""


def adapter_name(tensor: AddedTensor) -> str:
    """PEFT's name of a tensor in an adapter file."""
    return f"{PEFT_PREFIX}{tensor.name}"


def adapter_specs(plan: Plan) -> list[Spec]:
    """Name, dtype and shape of every tensor in the adapter's weight file."""
    return [(adapter_name(t), t.dtype, t.shape) for edit in plan.edits for t in edit.tensors]


def adapter_config(plan: Plan) -> dict[str, Any]:
    """The arguments of PEFT's LoraConfig for this plan, with every module under its full name."""
    loras = plan.loras()
    rank, alpha = (loras[0].rank, loras[0].alpha) if loras else (8, 16.0)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": plan.anatomy.source,
        "revision": plan.recipe.revision,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": _differing(loras, "rank", rank),
        "alpha_pattern": _differing(loras, "alpha", alpha),
        "target_modules": [edit.path for edit in loras] or _NO_TARGET,
        "modules_to_save": [e.path for e in (*plan.swaps(), *plan.part_swaps())] or None,
        "fan_in_fan_out": _all_transposed(plan),
    }
    return {**config, **(dict(loras[0].options) if loras else {})}


def base_files(plan: Plan) -> list[Path]:
    """The base's files, except weights, that a plain checkpoint needs to load and generate."""
    assert plan.files is not None
    found = (file for glob in _COPIED_FILES for file in plan.files.folder.glob(glob))
    rewritten = REWRITTEN if plan.changes_depth else ()
    return sorted({file for file in found if file.is_file() and file.name not in rewritten})


def depth_files(plan: Plan) -> dict[str, bytes]:
    """The files, except weights, that a new depth changes, by name."""
    assert plan.files is not None
    index = shard_index(depth_shards(plan)) if plan.files.has_weights else {}
    return {"config.json": depth_config(plan), **index}


def weight_bytes(plan: Plan) -> int:
    """Size of the weight files in bytes, headers and an assembled model included."""
    written = 0 if plan.is_plain else file_size(adapter_specs(plan))
    if plan.recipe.vision:
        written += _base_bytes(plan)
    if not plan.in_place:
        return written
    if plan.changes_depth and plan.files and plan.files.has_weights:
        return written + sum(shard.size for shard in depth_shards(plan))
    return written + _base_bytes(plan)


def _base_bytes(plan: Plan) -> int:
    """Size in bytes of the base's own weight files, as they are or as they will be."""
    if plan.assembly:
        return plan.assembly.size
    if plan.files and plan.files.has_weights:
        return sum(file.stat().st_size for file in plan.files.checkpoint().files)
    return file_size((t.name, t.dtype, t.shape) for t in plan.result.tensors())


def saved_plan(plan: Plan) -> str:
    """The content of plan.json."""
    assert plan.files is not None
    return side_files(plan, identify(plan.files, plan.anatomy))[PLAN_FILE].decode()


def write_plan(file: Path, text: str, plan: Plan) -> None:
    """Write the text of `saved_plan` to a file; only another plan is replaced by it.

    Raises:
        SurgeryError: A301 where something else is there, or the plan of an adapter or an export,
            and as `replace_text`.
    """
    real = Path(os.path.realpath(file))
    with io_errors(file):
        if real.is_file():
            belongs = any((real.parent / name).exists() for name in _OWNERS_OF_A_PLAN)
            if (belongs and real.name == PLAN_FILE) or not _is_plan(real):
                raise SurgeryError(diagnostic("A301.not_a_plan", file=file))
    replace_text(file, text, inputs=plan.inputs())


def _is_plan(file: Path) -> bool:
    try:
        document = json.loads(file.read_bytes())
    except ValueError:
        return False
    return isinstance(document, dict) and {"format_version", "recipe", "model"} <= document.keys()


def base_folder(plan: Plan, folder: Path) -> Path:
    """Folder with the base's weights: the base's own, unless they train in place."""
    if not plan.in_place:
        assert plan.files is not None
        return plan.files.folder
    return folder if plan.is_plain else folder / BASE_FOLDER


def saved_adapter_config(plan: Plan) -> dict[str, Any]:
    """The content of adapter_config.json, whose type plain PEFT refuses where it lacks parts."""
    config = adapter_config(plan)
    return {**config, "peft_type": ROUTED_TYPE} if plan.is_routed else config


def side_files(plan: Plan, fingerprint: dict[str, Any] | None) -> Mapping[str, bytes]:
    """Return the content of every file next to the weights, by name.

    plan.json states the size of all files, its own included: it is written again until the stated
    size is right, which takes two or three rounds.

    Args:
        plan: The plan to apply.
        fingerprint: Fingerprint of the base; None without its weights.
    """
    texts = {RECIPE_FILE: _recipe_yaml(plan), CARD_FILE: model_card(plan, fingerprint)}
    if not plan.is_plain:
        texts[ADAPTER_CONFIG] = to_json(saved_adapter_config(plan))
    others = {name: text.encode() for name, text in texts.items()}
    size = weight_bytes(plan)
    fixed = size + sum(map(len, others.values())) + _copied_bytes(plan)

    document, written = b"", -1
    while written != fixed + len(document):
        written = fixed + len(document)
        document = to_json(plan_document(plan, size, written, fingerprint)).encode()
    return {**others, PLAN_FILE: document}


def _copied_bytes(plan: Plan) -> int:
    """Size in bytes of what a plain checkpoint copies from the base or changes, except weights.

    The tokenizer and processor of an assembled model are counted once they are written.
    """
    if plan.files is None:
        return 0
    copied = 0
    if plan.recipe.vision and plan.files.has_weights:
        copied += sum(f.stat().st_size for f in plan.files.folder.iterdir()) - _base_bytes(plan)
    if not plan.in_place:
        return copied
    rewritten = sum(map(len, depth_files(plan).values())) if plan.changes_depth else 0
    return copied + rewritten + sum(file.stat().st_size for file in base_files(plan))


def _recipe_yaml(plan: Plan) -> str:
    resolved = plan.recipe.resolved()
    resolved.pop("name")
    head = f"# {plan.recipe.name}, as applied to {plan.anatomy.source}\n"
    return head + yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True, width=100)


def _differing(loras: list[AddLora], field: str, common: float) -> dict[str, Any]:
    """Full names, as regular expressions, whose rank or alpha isn't the common one."""
    return {
        edit.path.replace(".", r"\."): getattr(edit, field)
        for edit in loras
        if getattr(edit, field) != common
    }


def _all_transposed(plan: Plan) -> bool:
    kinds = (m for kind in plan.anatomy.kinds for m in kind.matrices)
    return any(matrix.is_transposed for matrix in kinds)
