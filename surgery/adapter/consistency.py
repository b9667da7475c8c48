"""Whether the files of an adapter folder describe one model.

Plain PEFT reads adapter_config.json, `surgery export` reads plan.json, `surgery train` reads
recipe.yaml, and all read the weights. Where two of them differ, each would see another model, so
the folder is refused with the key that differs. No other module compares them.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from surgery.adapter.model_card import FINGERPRINT_LINE, RIGHT_BASE
from surgery.adapter.side_files import saved_adapter_config
from surgery.adapter.weights_layout import check_weights, has_weights
from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.diagnostics.wording import first_line
from surgery.model.fingerprint import refuse_bad_fingerprint
from surgery.plan.planner import Plan
from surgery.plan.serialization import depth_document, edit_documents, first_difference, to_json
from surgery.storage.file_names import (
    ADAPTER_CONFIG,
    ASSEMBLED_FOLDER,
    CARD_FILE,
    PLAN_FILE,
    RECIPE_FILE,
)
from surgery.storage.folder_kinds import did_you_mean, refuse_export, why_none
from surgery.storage.json_file import object_of, read_object, read_regular
from surgery.storage.yaml_text import load_yaml

FREE_KEYS: Final = frozenset(
    ("base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version")
)
"""Keys of adapter_config.json that change no weight of the model."""

_NONE_KEYS: Final = """alora_invocation_tokens arrow_config corda_config eva_config exclude_modules
kasa_config layer_replication layers_pattern layers_to_transform lora_ga_config megatron_config
modules_to_save monteclora_config target_parameters trainable_token_indices use_bdlora
velora_config"""
_FALSE_KEYS: Final = """ensure_weight_tying fan_in_fan_out lora_bias use_dora use_qalora
use_rslora"""
PEFT_DEFAULTS: Final[Mapping[str, object]] = {
    **dict.fromkeys(_NONE_KEYS.split()),
    **dict.fromkeys(_FALSE_KEYS.split(), False),
    "init_lora_weights": True,
    "bias": "none",
    "megatron_core": "megatron.core",
    "qalora_group_size": 16,
    "lora_dropout": 0.0,
    "loftq_config": {},
    "rank_pattern": {},
    "alpha_pattern": {},
}
"""The defaults of PEFT's LoraConfig, whose import would bring torch to what only moves bytes."""

_FREE_TO_DIFFER: Final = ("name", "description", "model", "revision", "knobs", "stages", "allow")
"""Keys of a recipe that change no edit."""


def read_document(folder: Path) -> dict[str, Any]:
    """Return the content of plan.json, once what it says of the base is checked.

    Args:
        folder: Path of an adapter folder.

    Raises:
        SurgeryError: A402 for no adapter, A422 where the base's fingerprint is missing.
    """
    refuse_export(folder)
    try:
        document = read_object(folder / PLAN_FILE)
        model = document["model"]
        if not isinstance(model["source"], str):
            raise TypeError("`model.source` is no text")
        document = {**document, "model": {"fingerprint": None, **model}}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SurgeryError(_not_an_adapter(folder, error)) from error
    if document["model"]["fingerprint"] is None and not _names_its_base(folder):
        return document
    refuse_bad_fingerprint(document["model"]["fingerprint"], folder / PLAN_FILE)
    return document


def _names_its_base(folder: Path) -> bool:
    """Whether the model card names the fingerprint that plan.json should have.

    An adapter of a model that was only in memory has none, and neither has its card.
    """
    try:
        card = read_regular(folder / CARD_FILE).decode(errors="replace")
    except OSError:
        return False
    return FINGERPRINT_LINE in card or RIGHT_BASE in card


def assembled_folder(folder: Path, document: Mapping[str, Any]) -> Path:
    """Path of the assembled model in an adapter folder.

    Raises:
        SurgeryError: A423, where plan.json names a vision tower and the folder has no such model.
    """
    assembled = folder / ASSEMBLED_FOLDER
    if not assembled.is_dir():
        vision = document["recipe"]["vision"]
        raise SurgeryError(_differs(folder, PLAN_FILE, "recipe.vision", "nothing", vision))
    return assembled


def refuse_inconsistent(
    plan: Plan,
    document: Mapping[str, Any],
    folder: Path,
    *,
    needs_weights: bool = True,
    trust_remote_code: bool = False,
) -> None:
    """Refuse a folder whose files don't describe one model.

    Args:
        plan: A plan made now of the recipe in `document`.
        document: Content of plan.json in the folder.
        folder: Path of an adapter folder.
        needs_weights: Whether the weights must be there, as by default; otherwise they are compared
            where they are, and so is adapter_config.json, which a saved plan alone doesn't have.
        trust_remote_code: Whether the base may run its own Python code; False by default.

    Raises:
        SurgeryError: A420 for adapter_config.json, A421 and A402 for the weights, A423 for
            plan.json and recipe.yaml; M for files that can't be read.
    """
    _refuse_other_recipe(document, folder)
    refuse_other_edits(plan, document, folder)
    compares_weights = needs_weights or has_weights(plan, folder)
    if not plan.is_plain and (compares_weights or os.path.lexists(folder / ADAPTER_CONFIG)):
        _refuse_other_config(plan, folder)
    if compares_weights:
        recorded = (document["model"]["fingerprint"] or {}).get("adapter")
        check_weights(plan, folder, recorded, trust_remote_code=trust_remote_code)


def refuse_other_edits(plan: Plan, document: Mapping[str, Any], folder: Path) -> None:
    """Refuse a plan.json whose recipe gives other edits than it lists.

    Raises:
        SurgeryError: A423, with the key.
    """
    made = {"edits": edit_documents(plan), "depth": depth_document(plan)}
    _refuse_difference(folder, PLAN_FILE, {"depth": None, **document}, made, tuple(made))


def _refuse_other_recipe(document: Mapping[str, Any], folder: Path) -> None:
    """Compare the recipe in plan.json with recipe.yaml, which `surgery train` continues with."""
    file = folder / RECIPE_FILE
    try:
        saved = load_yaml(read_regular(file).decode())
    except FileNotFoundError:
        return
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise SurgeryError(_unreadable(file, error)) from error
    found = document["recipe"]
    keys = tuple(key for key in {**found, **_mapping(saved)} if key not in _FREE_TO_DIFFER)
    _refuse_difference(folder, RECIPE_FILE, _mapping(saved), found, keys)


def _refuse_other_config(plan: Plan, folder: Path) -> None:
    """Compare adapter_config.json with the one of the plan, key by key."""
    file = folder / ADAPTER_CONFIG
    try:
        saved = read_object(file)
    except (OSError, ValueError) as error:
        raise SurgeryError(_unreadable(file, error)) from error
    made = object_of(to_json(saved_adapter_config(plan)))
    for key in dict.fromkeys((*made, *saved)):
        is_known = key in made or key in PEFT_DEFAULTS
        expected = made.get(key, PEFT_DEFAULTS.get(key))
        found = saved.get(key, PEFT_DEFAULTS.get(key))
        # an unknown key is a newer PEFT's, and off unless it has a value
        is_same = _same_value(found, expected) if is_known else not found
        if key not in FREE_KEYS and not is_same:
            raise SurgeryError(_differs(folder, ADAPTER_CONFIG, key, expected, found))


def _same_value(found: object, expected: object) -> bool:
    """Whether two values of a LoraConfig are equivalent; lists are sets of modules."""
    if isinstance(found, list) and isinstance(expected, list):
        return sorted(map(str, found)) == sorted(map(str, expected))
    if isinstance(expected, float):
        return type(found) in (int, float) and found == expected
    return type(found) is type(expected) and found == expected


def _refuse_difference(
    folder: Path,
    name: str,
    saved: Mapping[str, Any],
    made: Mapping[str, Any],
    keys: tuple[str, ...],
) -> None:
    for key in keys:
        path = first_difference(saved.get(key), made.get(key), key)
        if path:
            values = _at(made, path), _at(saved, path)
            raise SurgeryError(_differs(folder, name, path, *values))


def _at(content: Any, path: str) -> Any:
    """The value at a dotted path; None where there is none."""
    for step in _steps(content, path):
        content = step
    return content


def _steps(content: Any, path: str) -> Iterator[Any]:
    for key in path.split("."):
        if isinstance(content, list):
            at = int(key) if key.isdigit() else len(content)
            content = content[at] if at < len(content) else None
        else:
            content = content.get(key) if isinstance(content, dict) else None
        yield content


def _mapping(content: Any) -> dict[str, Any]:
    return content if isinstance(content, dict) else {}


def _differs(folder: Path, name: str, key: str, expected: object, found: object) -> Diagnostic:
    return diagnostic(
        "A420.differs" if name == ADAPTER_CONFIG else "A423.differs",
        setting=key,
        file=name,
        folder=folder,
        found=_short(found),
        expected=_short(expected),
    )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _unreadable(file: Path, error: Exception) -> Diagnostic:
    return diagnostic(
        "A420.unreadable" if file.name == ADAPTER_CONFIG else "A423.unreadable",
        file=file,
        reason=_short(first_line(error)),
    )


def _not_an_adapter(folder: Path, error: Exception) -> Diagnostic:
    fix = did_you_mean(folder, "`surgery apply RECIPE --out DIR` makes an adapter folder")
    return diagnostic(
        "A402.not_an_adapter",
        folder=folder,
        why=why_none(folder, PLAN_FILE, first_line(error)),
        fix=fix,
    )
