"""Keys that conversations of every format share: images, system, tools, and what is learned."""

import json
from collections.abc import Collection, Sequence
from typing import Any, Final

from surgery.data.base import RecordLocation, Turn, bad_form, is_blank, refuse_meaning, tool_name
from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError

SHARED: Final = frozenset({"image", "images", "system", "system_prompt", "tools"})
"""Keys of a record that the functions here read."""

_LEARNED: Final = ("loss", "weight", "train", "training")
"""Keys by which data of ms-swift, OpenAI, Mistral and axolotl mark whether a turn is learned."""


def named_images(content: dict[str, Any], location: RecordLocation) -> list[str]:
    """The paths under `image` or `images`; under both, where they are the same."""
    named = [paths_of(content[k], location) for k in ("image", "images") if k in content]
    found = [paths for paths in named if paths]
    if found[1:] and found[0] != found[1]:
        bad_form(location, "`image` and `images` name other files")
    return found[0] if found else []


def paths_of(value: Any, location: RecordLocation) -> list[str]:
    """The paths in a string, in an image as `datasets` writes it, or in a list of these."""
    entries = value if isinstance(value, list) else [value]
    paths = [_path(entry) for entry in entries if not is_blank(entry)]
    if not all(isinstance(path, str) for path in paths):
        bad_form(location, "its images are neither a path nor a list of paths")
    return paths


def with_system(
    content: dict[str, Any], turns: Sequence[Turn], location: RecordLocation
) -> list[Turn]:
    """Turns with the text under `system` or `system_prompt` first."""
    found = [content[key] for key in ("system", "system_prompt") if key in content]
    if not all(isinstance(text, str) for text in found):
        bad_form(location, "`system` is not text")
    inline = [turn.text for turn in turns if turn.role == "system"]
    if len({*found, *inline}) > 1 and found:
        bad_form(location, "it has several system texts")
    return [Turn("system", found[0]), *turns] if found and not inline else list(turns)


def tools_of(content: dict[str, Any], location: RecordLocation) -> list[dict[str, Any]]:
    """The descriptions under `tools`, a list or the JSON of one."""
    tools = content.get("tools", [])
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError) as error:
            bad_form(location, f"`tools` is not JSON: {error}")
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        bad_form(location, "`tools` is not a list of objects")
    if not all(isinstance(tool_name(tool), str) for tool in tools):
        bad_form(location, "one of its `tools` has no name")
    return tools


def turn_keys(
    content: dict[str, Any], used: Collection[str], location: RecordLocation, *, is_answer: bool
) -> tuple[bool, list[str]]:
    """Whether a turn is learned, and which of its keys are not used.

    Args:
        content: JSON object of the turn.
        used: Keys that are read elsewhere.
        location: File, line and record number.
        is_answer: Whether it could be learned.

    Raises:
        SurgeryError: D115, for a key that can't be honored.
    """
    given = {k: v for k, v in content.items() if k not in used and not is_blank(v)}
    found = {key: given.pop(key) for key in _LEARNED if key in given}
    for key, value in found.items():
        if not isinstance(value, int | float) or value not in (0, 1):
            raise SurgeryError(
                diagnostic("D115.weight", location=location, setting=key, value=value)
            )
    unused = refuse_meaning(given.keys(), location, "a turn")
    if not is_answer:
        unused += [f"`{key}` of what is no answer" for key, value in found.items() if value]
    return all(found.values()), unused


def _path(entry: Any) -> Any:
    is_file = isinstance(entry, dict) and is_blank(entry.get("bytes"))
    return entry.get("path") if is_file else entry
