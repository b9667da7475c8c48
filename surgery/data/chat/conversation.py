"""Checks of a conversation: it has an answer to learn, and its images exist and are shown."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from surgery.data.base import IMAGE, Record, RecordLocation, Turn, no_answer
from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError

_LONGEST_NAME: Final = 100
"""Maximum number of characters of an image's name in a message; some are base64 data."""


def conversation(
    location: RecordLocation,
    turns: Sequence[Turn],
    images: Sequence[Path],
    *,
    tools: Sequence[dict[str, Any]] = (),
    unused: Sequence[str] = (),
) -> Record:
    """Check a conversation and return its record.

    Images without a placeholder go before the user's first text. A first turn that is an answer is
    not learned, since nobody asked for it.

    Args:
        location: File, line and record number.
        turns: Turns in order.
        images: Paths of its images.
        tools: See `Record`.
        unused: See `Record`.

    Raises:
        SurgeryError: D104 without an answer to learn or with an empty one, D105 for a missing
            image, D107 for placeholders that don't match the images.
    """
    if turns and turns[0].role == "assistant":
        turns = [replace(turns[0], is_learned=False), *turns[1:]]
        unused = [*unused, "an answer that a conversation begins with"]
    why = _nothing_learned(turns)
    if why:
        raise SurgeryError(no_answer(location, why))
    for image in images:
        _refuse_missing(location, image)
    asked = sum(turn.text.count(IMAGE) for turn in turns)
    shown = sum(turn.text.count(IMAGE) for turn in turns if turn.role == "user")
    if asked == 0 and any(turn.role == "user" for turn in turns):
        turns = _shown_first(turns, len(images))
    elif asked != shown or asked != len(images):
        raise SurgeryError(_other_images(location, asked, shown, len(images)))
    return Record(location, tuple(turns), tuple(images), tools=tuple(tools), unused=tuple(unused))


def _nothing_learned(turns: Sequence[Turn]) -> str:
    """Why no answer of a conversation can be learned; empty where one can."""
    answers = [turn for turn in turns if turn.role == "assistant"]
    learned = [answer for answer in answers if answer.is_learned]
    if not answers:
        return "nobody answers"
    if not learned:
        only = answers == [turns[0]]
        return "nobody asks for its answer" if only else "none of its answers is to be learned"
    return "" if all(answer.text.strip() for answer in learned) else "an answer is empty"


def _refuse_missing(location: RecordLocation, image: Path) -> None:
    try:
        is_there = image.is_file()
    except (OSError, ValueError):  # a name that no file system takes
        is_there = False
    if not is_there:
        raise SurgeryError(_no_image(location, image))


def _shown_first(turns: Sequence[Turn], images: int) -> list[Turn]:
    first = next(i for i, turn in enumerate(turns) if turn.role == "user")
    text = f"{IMAGE}\n" * images + turns[first].text
    return [*turns[:first], replace(turns[first], text=text), *turns[first + 1 :]]


def _no_image(location: RecordLocation, image: Path) -> Diagnostic:
    name = str(image)
    shown = name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…"
    return diagnostic("D105.missing", location=location, file=shown)


def _other_images(location: RecordLocation, asked: int, shown: int, images: int) -> Diagnostic:
    elsewhere = "" if asked == shown else ", some of them not in the user's turns"
    return diagnostic(
        "D107.count",
        location=location,
        asked=asked,
        image=IMAGE,
        images=images,
        elsewhere=elsewhere,
    )
