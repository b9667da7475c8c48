"""Conversations as chat messages: `{"messages": [{"role", "content"}]}`.

Source: the chat templates of transformers and the conversational format of TRL. `content` is text,
or a list of parts of type `text` and `image`; images may also be under `images`.
"""

from pathlib import Path
from typing import Any, Final

from surgery.data.base import (
    IMAGE,
    Record,
    RecordForm,
    RecordLocation,
    Role,
    Turn,
    bad_form,
    bad_role,
    is_blank,
    refuse_meaning,
)
from surgery.data.chat.conversation import conversation
from surgery.data.chat.keys import SHARED, named_images, paths_of, tools_of, turn_keys, with_system
from surgery.data.images import resolve_image

_ROLES: Final[dict[str, Role]] = {"system": "system", "user": "user", "assistant": "assistant"}
_IMAGE_KEYS: Final = ("image", "path", "url", "image_url")


class MessagesForm(RecordForm):
    """Turns under `messages`, images in their parts or under `images`."""

    key = "messages"
    used = SHARED | {key}

    def read(self, content: dict[str, Any], location: RecordLocation, images: Path) -> Record:
        """See `RecordForm.read`."""
        messages = content[self.key]
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
            bad_form(location, f"`{self.key}` is not a list of objects")
        read = [_Message(message, location) for message in messages]
        inline = [file for message in read for file in message.files]
        token_fields = named_images(content, location)
        if inline and token_fields and inline != token_fields:
            bad_form(location, "its messages name other images than its own key")
        return conversation(
            location,
            with_system(content, [message.turn for message in read], location),
            [resolve_image(images, file, location) for file in inline or token_fields],
            tools=tools_of(content, location),
            unused=[key for message in read for key in message.unused],
        )


class _Message:
    """A parsed message: its turn, its image files, and its keys that are not used."""

    def __init__(self, content: dict[str, Any], location: RecordLocation) -> None:
        self.files: list[str] = []
        self._location = location
        role = _role(content, location)
        is_answer = role == "assistant"
        learned, self.unused = turn_keys(
            content, {"role", "content"}, location, is_answer=is_answer
        )
        self.turn = Turn(role, self._text(content.get("content")), learned)

    def _text(self, content: Any) -> str:
        if isinstance(content, str):
            return content
        if not isinstance(content, list):
            bad_form(self._location, "a message has no `content`")
        return "".join(self._part(part) for part in content)

    def _part(self, part: Any) -> str:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            self._note_unused(part, {"type", "text"})
            return str(part["text"])
        if kind in ("image", "image_url"):
            self._note_unused(part, {"type", *_IMAGE_KEYS})
            named = [part[key] for key in _IMAGE_KEYS if not is_blank(part.get(key))]
            self.files += [path for value in named[:1] for path in self._paths(value)]
            return f"{IMAGE}\n"
        bad_form(self._location, f"a part of a message is neither text nor image: {part}")

    def _paths(self, value: Any) -> list[str]:
        """The path of an image part; OpenAI's format has it under `url`."""
        return paths_of(
            value["url"] if isinstance(value, dict) and "url" in value else value, self._location
        )

    def _note_unused(self, part: dict[str, Any], used: set[str]) -> None:
        given = {key for key, value in part.items() if not is_blank(value)}
        self.unused += refuse_meaning(given - used, self._location, "a part of a message")


def _role(message: dict[str, Any], location: RecordLocation) -> Role:
    role = _ROLES.get(str(message.get("role")))
    if role is None:
        bad_role(location, message.get("role"), tuple(_ROLES))
    return role
