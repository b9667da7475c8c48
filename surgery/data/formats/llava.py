"""Conversations as LLaVA writes them: `{"image": …, "conversations": [{"from", "value"}]}`.

Source: github.com/haotian-liu/LLaVA, docs/Finetune_Custom_Data.md. `image` may be a list.
"""

from pathlib import Path
from typing import Any, Final

from surgery.data.base import (
    Record,
    RecordForm,
    RecordLocation,
    Role,
    Turn,
    bad_form,
    bad_role,
)
from surgery.data.chat.conversation import conversation
from surgery.data.chat.keys import SHARED, named_images, tools_of, turn_keys, with_system
from surgery.data.images import resolve_image

_ROLES: Final[dict[str, Role]] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}


class LlavaForm(RecordForm):
    """Turns under `conversations`, images under `image` or `images`."""

    key = "conversations"
    used = SHARED | {key}

    def read(self, content: dict[str, Any], location: RecordLocation, images: Path) -> Record:
        """See `RecordForm.read`."""
        if not isinstance(content[self.key], list):
            bad_form(location, f"`{self.key}` is not a list")
        read = [_turn(turn, location) for turn in content[self.key]]
        return conversation(
            location,
            with_system(content, [turn for turn, _ in read], location),
            [resolve_image(images, file, location) for file in named_images(content, location)],
            tools=tools_of(content, location),
            unused=[key for _, unused in read for key in unused],
        )


def _turn(content: Any, location: RecordLocation) -> tuple[Turn, list[str]]:
    """A turn, and its keys that are not used."""
    if not isinstance(content, dict) or not isinstance(content.get("value"), str):
        bad_form(location, "a turn has no `value` that is text")
    role = _ROLES.get(str(content.get("from")))
    if role is None:
        bad_role(location, content.get("from"), tuple(_ROLES))
    is_answer = role == "assistant"
    learned, unused = turn_keys(content, {"from", "value"}, location, is_answer=is_answer)
    return Turn(role, content["value"], learned), unused
