"""Conversations as chat messages: `{"messages": [{"role", "content"}]}`.

Source: the chat templates of transformers and the conversational form of TRL. `content` is text, or
a list of parts of type `text` and `image`; images may also stand under `images`.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from surgery.data.record import (
    IMAGE,
    Place,
    Record,
    RecordForm,
    Role,
    Turn,
    bad_form,
    bad_role,
    conversation,
)

_ROLES: Final[dict[str, Role]] = {"system": "system", "user": "user", "assistant": "assistant"}
_IMAGE_KEYS: Final = ("image", "path", "url")


class MessagesForm(RecordForm):
    """Turns under `messages`, images in their parts or under `images`."""

    def matches(self, content: dict[str, Any]) -> bool:
        """See `RecordForm.matches`."""
        return "messages" in content

    def read(self, content: dict[str, Any], place: Place, images: Path) -> Record:
        """See `RecordForm.read`."""
        messages = content["messages"]
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
            bad_form(place, "`messages` is not a list of objects")
        turns = [Turn(_role(message, place), _text(message, place)) for message in messages]
        inside = [file for message in messages for file in _files(message)]
        beside = content.get("images") or content.get("image") or []
        files = inside or ([beside] if isinstance(beside, str) else beside)
        if not isinstance(files, list) or not all(isinstance(file, str) for file in files):
            bad_form(place, "`images` is not a list of paths")
        return conversation(place, turns, [images / file for file in files])


def _role(message: dict[str, Any], place: Place) -> Role:
    role = _ROLES.get(str(message.get("role")))
    if role is None:
        bad_role(place, message.get("role"), tuple(_ROLES))
    return role


def _text(message: dict[str, Any], place: Place) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        bad_form(place, "a message has no `content`")
    return "".join(_words(part, place) for part in content)


def _words(part: Any, place: Place) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind in ("image", "image_url"):
        return f"{IMAGE}\n"
    bad_form(place, f"a part of a message is neither text nor image: {part}")


def _files(message: dict[str, Any]) -> Iterator[str]:
    content = message.get("content")
    for part in content if isinstance(content, list) else ():
        if isinstance(part, dict) and part.get("type") in ("image", "image_url"):
            yield from (part[key] for key in _IMAGE_KEYS if isinstance(part.get(key), str))
