"""A plan as JSON: what `plan --format json` prints, `--out` saves, and adapters contain.

The document is the same everywhere, and `apply plan.json` makes it again and compares.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

from pydantic import ValidationError

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.diagnostics.distribution import own_version
from surgery.plan.depth.changes import sources_of
from surgery.plan.planner import Plan
from surgery.recipe.schema import Recipe
from surgery.storage.json_file import object_of

FORMAT_VERSION: Final = "1.0"


def plan_document(
    plan: Plan, adapter_bytes: int, written_bytes: int, fingerprint: dict[str, Any] | None
) -> dict[str, Any]:
    """Return a plan as plain data; the keys are the same for every recipe.

    Args:
        plan: Plan to serialize.
        adapter_bytes: Size of the weight files in bytes, headers included.
        written_bytes: Size in bytes of all that applying the plan writes.
        fingerprint: Fingerprint of the base; None where its weights are not on this disk.
    """
    return {
        "format_version": FORMAT_VERSION,
        "surgery": own_version(),
        "recipe": plan.recipe.resolved(),
        "model": {
            "source": plan.anatomy.source,
            "revision": plan.recipe.revision,
            "model_type": plan.anatomy.model_type,
            "blocks": plan.anatomy.count,
            "fingerprint": fingerprint,
        },
        "edits": edit_documents(plan),
        "depth": depth_document(plan),
        "parameters": _counts(plan),
        "stages": [{"name": s.name, "trainable": plan.trainable_in(s)} for s in plan.stages],
        "bytes": {"adapter": adapter_bytes, "written": written_bytes},
        "diagnostics": [diagnostic_document(note) for note in plan.notes],
    }


def edit_documents(plan: Plan) -> list[dict[str, Any]]:
    """The edits of a plan as plain data, in order."""
    return [
        {
            "operation": edit.operation,
            "op": edit.op,
            "block": edit.block if edit.block >= 0 else None,
            "path": edit.path,
            "parameters": edit.parameters,
            "trainable": plan.trainable_of(edit),
        }
        for edit in plan.edits
    ]


def depth_document(plan: Plan) -> list[Any] | None:
    """The blocks of a new depth by the indices of their sources; None where it is unchanged."""
    return list(sources_of(plan.depth)) if plan.changes_depth else None


def _counts(plan: Plan) -> dict[str, Any]:
    return {
        "base": plan.base,
        "added": plan.added,
        "removed": plan.removed,
        "trainable": plan.trainable,
        "frozen": plan.total - plan.trainable,
        "total": plan.total,
        "by": plan.by_operation(),
    }


def diagnostic_document(item: Diagnostic) -> dict[str, str]:
    """Return a diagnostic as plain data.

    It has the recipe's key and no file, so that it is the same for a plan that is read back.
    """
    names = ("code", "severity", "what", "why", "fix", "key")
    return {name: getattr(item, name) for name in names}


def to_json(document: dict[str, Any]) -> str:
    """Return a document as the text that is printed and saved, with a newline at the end."""
    text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
    return text.encode(errors="backslashreplace").decode()  # a lone surrogate as JSON escapes it


def recipe_of(text: str, file: str) -> Recipe:
    """Read the recipe from the text of a saved plan; otherwise as `recipe_in`."""
    try:
        document = object_of(text)
    except ValueError as error:
        raise SurgeryError(_not_a_plan(file)) from error
    return recipe_in(document, file)


def recipe_in(document: Mapping[str, Any], file: str) -> Recipe:
    """Read the recipe from a plan's document.

    Args:
        document: Content of plan.json.
        file: Name of the file, for the message.

    Raises:
        SurgeryError: P210, where it is no plan of this version.
    """
    try:
        if document["format_version"] != FORMAT_VERSION:
            raise SurgeryError(_not_a_plan(file))
        return Recipe.model_validate_json(json.dumps(document["recipe"]))
    except ValidationError as error:
        raise SurgeryError(_not_a_plan(file, _first_fault(error))) from error
    except (ValueError, KeyError, TypeError) as error:
        raise SurgeryError(_not_a_plan(file)) from error


def first_difference(saved: Any, rebuilt: Any, path: str = "") -> str | None:
    """Return the first key at which two documents differ, or None."""
    if isinstance(saved, dict) and isinstance(rebuilt, dict):
        keys = dict.fromkeys((*saved, *rebuilt))
        pairs = ((f"{path}.{key}", saved.get(key), rebuilt.get(key)) for key in keys)
    elif isinstance(saved, list) and isinstance(rebuilt, list) and len(saved) == len(rebuilt):
        pairs = ((f"{path}.{i}", a, b) for i, (a, b) in enumerate(zip(saved, rebuilt, strict=True)))
    else:
        return None if saved == rebuilt else path.lstrip(".")
    differences = (first_difference(a, b, name) for name, a, b in pairs)
    return next((name for name in differences if name), None)


def _first_fault(error: ValidationError) -> str:
    """The key of a recipe that is wrong, and how."""
    first = error.errors(include_url=False, include_input=False)[0]
    return f"`{'.'.join(('recipe', *map(str, first['loc'])))}`: {first['msg']}"


def _not_a_plan(file: str, why: str = "") -> Diagnostic:
    return diagnostic(
        "P210.not_a_plan",
        file=file,
        reason=why
        or f"a plan is a JSON document with format_version {FORMAT_VERSION} and its recipe",
    )
