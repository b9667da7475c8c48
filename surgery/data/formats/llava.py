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
from surgery.data.images import beneath

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

    def read(self, content: dict[str, Any], place: RecordLocation, images: Path) -> Record:
        """See `RecordForm.read`."""
        if not isinstance(content[self.key], list):
            bad_form(place, f"`{self.key}` is not a list")
        read = [_turn(turn, place) for turn in content[self.key]]
        return conversation(
            place,
            with_system(content, [turn for turn, _ in read], place),
            [beneath(images, file, place) for file in named_images(content, place)],
            tools=tools_of(content, place),
            unused=[key for _, unused in read for key in unused],
        )


def _turn(content: Any, place: RecordLocation) -> tuple[Turn, list[str]]:
    """A turn, and its keys that are not used."""
    if not isinstance(content, dict) or not isinstance(content.get("value"), str):
        bad_form(place, "a turn has no `value` that is text")
    role = _ROLES.get(str(content.get("from")))
    if role is None:
        bad_role(place, content.get("from"), tuple(_ROLES))
    is_answer = role == "assistant"
    learned, unused = turn_keys(content, {"from", "value"}, place, is_answer=is_answer)
    return Turn(role, content["value"], learned), unused
