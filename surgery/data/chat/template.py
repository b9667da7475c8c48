"""A chat template, with turns in the form that it takes: strings or typed parts.

The form is found by trying both with marks as text, once for each sequence of roles and images; a
form is right only if every mark and every image is in the output.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from surgery.data.base import IMAGE, Record, RecordLocation, Turn
from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.diagnostics.wording import first_line

PLAIN_TEMPLATE: Final = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}User: {{ message.content }}\n"
    "{% elif message.role == 'assistant' %}Assistant: {{ message.content }}{{ eos_token }}\n"
    "{% else %}{{ message.content }}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""Chat template of a base without one."""

_Messages = list[dict[str, Any]]
_Render = Callable[[_Messages, Sequence[dict[str, Any]], bool], str]


@dataclass(frozen=True)
class _Form:
    """How turns are passed: as strings or typed parts, images as parts or as their token."""

    is_typed: bool
    has_image_parts: bool = False


@dataclass(frozen=True)
class _Refusal:
    """Why a conversation can't be written in a form: an error, or the turn that is left out."""

    error: Exception | None = None
    lost: int = 0

    def rank(self) -> int:
        """The template's own errors first, then what it leaves out, then those of a wrong form."""
        from jinja2 import TemplateError

        return 1 if self.error is None else 0 if type(self.error) is TemplateError else 2


_STRINGS, _PARTS, _IMAGE_PARTS = _Form(False), _Form(True), _Form(True, has_image_parts=True)


class Template:
    """Writes turns as one model takes them.

    Args:
        render: Function from messages, tools, and whether an answer follows, to a text.
        image_token: Placeholder of an image in the text; None without images.
        special: Tokens, one of which counts the images in a text.
    """

    def __init__(
        self, render: _Render, image_token: str | None = None, special: Collection[str] = ()
    ) -> None:
        self._render, self._image_token, self._special = render, image_token, special
        self._forms: dict[Any, _Form | _Refusal] = {}

    def write(self, record: Record, end: int, *, prompt: bool) -> str:
        """Write a record's turns before index `end`.

        Args:
            record: A conversation.
            end: Number of turns.
            prompt: Whether an answer follows.

        Raises:
            SurgeryError: D112 for a conversation that the template refuses, D114 for a turn whose
                text it leaves out.
        """
        form = self._form(record, end)
        try:
            messages = [self._message(turn, form) for turn in record.turns[:end]]
            return self._render(messages, record.tools, prompt)
        except Exception as error:  # whatever a template's code raises
            raise SurgeryError(
                diagnostic("D112", location=record.location, reason=first_line(error))
            ) from error

    def _message(self, turn: Turn, form: _Form) -> dict[str, Any]:
        content: Any = turn.text.replace(IMAGE, self._image_token or IMAGE)
        if form.has_image_parts:
            content = _parts(turn.text)
        elif form.is_typed:
            content = [{"type": "text", "text": content}]
        return {"role": turn.role, "content": content}

    def _form(self, record: Record, end: int) -> _Form:
        key = tuple((turn.role, turn.text.count(IMAGE)) for turn in record.turns[:end])
        if key not in self._forms:
            self._forms[key] = self._tried(key)
        found = self._forms[key]
        if isinstance(found, _Form):
            return found
        if found.error is not None:
            raise SurgeryError(
                diagnostic("D112", location=record.location, reason=first_line(found.error))
            ) from found.error
        raise SurgeryError(lost(record.location, record.turns[found.lost]))

    def _tried(self, key: Sequence[tuple[Any, int]]) -> _Form | _Refusal:
        """The first form in which everything is written, or the most informative refusal."""
        turns = [Turn(role, f"{IMAGE * n}zq{at}w") for at, (role, n) in enumerate(key)]
        shows = any(images for _, images in key)
        refusals = []
        for form in (_IMAGE_PARTS, _STRINGS, _PARTS) if shows else (_STRINGS, _PARTS):
            try:
                messages = [self._message(turn, form) for turn in turns]
                text = self._render(messages, [], False)
            except Exception as error:  # whatever a template's code raises
                refusals.append(_Refusal(error=error))
                continue
            missing = self._lost(text, turns)
            if missing is None:
                return form
            refusals.append(_Refusal(lost=missing))
        return min(refusals, key=_Refusal.rank)

    def _lost(self, text: str, turns: Sequence[Turn]) -> int | None:
        """Index of a turn whose mark or images a text lacks; None where all are there."""
        for at, turn in enumerate(turns):
            if turn.text.replace(IMAGE, "") not in text:
                return at
        images = [turn.text.count(IMAGE) for turn in turns]
        if not any(images) or sum(images) in map(text.count, self._special):
            return None
        return next(at for at, count in enumerate(images) if count)


def template_of(named: str | Mapping[str, str] | None, *, tools: bool) -> str | None:
    """The chat template among those of a tokenizer: for tools, or the default.

    Args:
        named: Template or templates by name, of a tokenizer or a processor.
        tools: Whether there are tools.

    Raises:
        ValueError: For templates without a default.
    """
    if not isinstance(named, Mapping):
        return named
    found = (named.get("tool_use") if tools else None) or named.get("default")
    if named and not found:
        raise ValueError(f"none of its templates, {', '.join(named)}, is the `default`")
    return found


def lost(location: RecordLocation, turn: Turn) -> Diagnostic:
    """D114, for a turn whose text a template leaves out."""
    line = " ".join(turn.text.split())
    shown = f"{line[:60]}…" if len(line) > 60 else line
    return diagnostic("D114.text", location=location, role=turn.role, text=shown)


def _parts(text: str) -> list[dict[str, str]]:
    """Typed parts; a line break next to a placeholder belongs to it, and the template writes it."""
    words = text.split(IMAGE)
    typed: list[dict[str, str]] = []
    for at, word in enumerate(words):
        part = word.removeprefix("\n") if at else word
        part = part.removesuffix("\n") if at < len(words) - 1 else part
        typed += [{"type": "image"}] if at else []
        typed += [{"type": "text", "text": part}] if part else []
    return typed or [{"type": "text", "text": ""}]
