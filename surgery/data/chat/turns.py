"""Conversations as a chat template writes them, split where answers begin and end, and checked.

A template may leave text out, or write a turn differently once others follow it; so its output is
compared with the record. axolotl finds an answer by rendering twice, and TRL patches the templates
that it knows; here an answer is what the template writes after the prompt that asks for it.
"""

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from surgery.data.base import IMAGE, Record, RecordLocation, Turn, tool_name
from surgery.data.chat.template import Template, lost
from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError

_THOUGHT: Final = "</think>"
"""End of the reasoning, which templates drop from earlier answers."""


@dataclass(frozen=True)
class Chunk:
    """Part of a conversation as text.

    Args:
        text: Text, never empty.
        is_learned: Whether it is an answer that is learned.
        images: Number of the record's next images in it; 0 by default.
    """

    text: str
    is_learned: bool
    images: int = 0


class Chat:
    """Writes conversations for one model.

    Args:
        template: Chat template of the model.
        special: Tokens of images or other media, which no text may contain.
    """

    def __init__(self, template: Template, special: Collection[str] = ()) -> None:
        self._template = template
        self._special = re.compile("|".join(map(re.escape, special)) or r"(?!)")

    def rows(self, record: Record) -> list[list[Chunk]]:
        """Write a conversation: in one row, or each answer separately where the template rewrites.

        Raises:
            SurgeryError: D110 for an answer that doesn't begin where it is asked for, D112 for a
                conversation that the template refuses, D113 for a special token in its text, D114
                for text that the template leaves out.
        """
        self.refuse_special(record)
        turns = enumerate(record.turns)
        learned = [at for at, turn in turns if turn.role == "assistant" and turn.is_learned]
        full = self._chunks(record, learned)
        if full is not None:
            return [_checked(record, full, learned)]
        return [self._alone(record, at) for at in learned]

    def prompt(self, record: Record, end: int) -> Chunk:
        """Write the turns before index `end`, up to where an answer begins.

        Raises:
            SurgeryError: D112 to D114, as for `rows`.
        """
        self.refuse_special(record)
        text = self._template.write(record, end, prompt=True)
        _refuse_lost(text, record.turns[:end], record)
        return Chunk(text, False, len(record.images_before(end)))

    def refuse_special(self, record: Record) -> None:
        """Refuse text that the model would take for an image.

        Raises:
            SurgeryError: D113.
        """
        words = [part for turn in record.turns for part in turn.text.split(IMAGE)]
        tools = json.dumps(record.tools, ensure_ascii=False) if record.tools else ""
        for text in (*words, record.text, tools):
            found = self._special.search(text)
            if found:
                raise SurgeryError(special_token(record.location, found[0]))

    def _alone(self, record: Record, at: int) -> list[Chunk]:
        chunks = self._chunks(record, [at])
        if chunks is None:
            raise SurgeryError(diagnostic("D110", location=record.location))
        return _checked(record, chunks, [at])

    def _chunks(self, record: Record, answers: Sequence[int]) -> list[Chunk] | None:
        """The text split at answers; None where one doesn't follow its prompt."""
        chunks: list[Chunk] = []
        done, images_done = "", 0
        for at in answers:
            prompt = self._template.write(record, at, prompt=True)
            full = self._template.write(record, at + 1, prompt=False)
            if not (prompt.startswith(done) and full.startswith(prompt)):
                return None
            images = len(record.images_before(at))
            chunks.append(Chunk(prompt[len(done) :], False, images - images_done))
            chunks.append(Chunk(full[len(prompt) :], True))
            done, images_done = full, images
        return chunks


def _checked(record: Record, chunks: Sequence[Chunk], answers: Sequence[int]) -> list[Chunk]:
    """A row, once every answer is in its own chunk and all other text is in the row."""
    turns = record.turns[: answers[-1] + 1]
    learned = (chunk.text for chunk in chunks if chunk.is_learned)
    for at, text in zip(answers, learned, strict=True):
        if _without_spaces(turns[at].text) not in _without_spaces(text):
            raise SurgeryError(lost(record.location, turns[at]))
    others = [turn for at, turn in enumerate(turns) if at not in answers]
    _refuse_lost("".join(chunk.text for chunk in chunks), others, record)
    return [chunk for chunk in chunks if chunk.text]


def _refuse_lost(text: str, turns: Sequence[Turn], record: Record) -> None:
    """Refuse a text without the text of a turn, or a tool's name; reasoning may be dropped."""
    squeezed = _without_spaces(text)
    for turn in turns:
        words = turn.text.rpartition(_THOUGHT)[2] if turn.role == "assistant" else turn.text
        if any(_without_spaces(part) not in squeezed for part in words.split(IMAGE)):
            raise SurgeryError(lost(record.location, turn))
    if any(_without_spaces(str(tool_name(tool))) not in squeezed for tool in record.tools):
        raise SurgeryError(diagnostic("D114.tools", location=record.location))


def _without_spaces(text: str) -> str:
    """A text without white space, which templates trim and add."""
    return "".join(text.split())


def special_token(location: RecordLocation, token: str) -> Diagnostic:
    """D113, for text with a token that the model takes for an image."""
    return diagnostic("D113", location=location, token=token, image=IMAGE)
