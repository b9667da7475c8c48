"""Conversations as LLaVA writes them: `{"image": …, "conversations": [{"from", "value"}]}`.

Source: github.com/haotian-liu/LLaVA, docs/Finetune_Custom_Data.md. `image` may be a list.
"""

from pathlib import Path
from typing import Any, Final

from surgery.data.record import (
    Place,
    Record,
    RecordForm,
    Role,
    Turn,
    bad_form,
    bad_role,
    conversation,
)

_ROLES: Final[dict[str, Role]] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}


class LlavaForm(RecordForm):
    """Turns under `conversations`, images under `image` or `images`."""

    def matches(self, content: dict[str, Any]) -> bool:
        """See `RecordForm.matches`."""
        return "conversations" in content

    def read(self, content: dict[str, Any], place: Place, images: Path) -> Record:
        """See `RecordForm.read`."""
        turns = content["conversations"]
        if not isinstance(turns, list):
            bad_form(place, "`conversations` is not a list")
        named = content.get("image", content.get("images")) or []
        files = [named] if isinstance(named, str) else named
        if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
            bad_form(place, "`image` is neither a path nor a list of paths")
        read = [_turn(turn, place) for turn in turns]
        return conversation(place, read, [images / file for file in files])


def _turn(content: Any, place: Place) -> Turn:
    if not isinstance(content, dict) or not isinstance(content.get("value"), str):
        bad_form(place, "a turn has no `value` that is text")
    role = _ROLES.get(str(content.get("from")))
    if role is None:
        bad_role(place, content.get("from"), tuple(_ROLES))
    return Turn(role, content["value"])
