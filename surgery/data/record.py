"""One record of a data file, whatever its form: turns of a conversation with images, or text."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

from surgery.diagnostic import Diagnostic, SurgeryError
from surgery.discover import classes_in

Role = Literal["system", "user", "assistant"]
IMAGE: Final = "<image>"
"""What stands for an image in a turn's text, as LLaVA writes it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record is written.

    Args:
        file: its data file.
        line: 1-based, the line that it begins on.
    """

    file: Path
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side of a conversation says; `IMAGE` stands where it shows an image."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Record:
    """A conversation, or a text.

    Args:
        place: where it is written.
        turns: of a conversation; empty for a text.
        images: files of its images, in the order of their placeholders.
        text: language to be learned whole; empty for a conversation.
    """

    place: Place
    turns: tuple[Turn, ...] = ()
    images: tuple[Path, ...] = ()
    text: str = ""


class RecordForm(ABC):
    """A form that records are written in; a module of this folder defines one."""

    @abstractmethod
    def matches(self, content: dict[str, Any]) -> bool:
        """Whether a JSON object is meant to be of this form."""

    @abstractmethod
    def read(self, content: dict[str, Any], place: Place, images: Path) -> Record:
        """Return the record.

        Args:
            content: a JSON object that matches.
            place: where it is written.
            images: the folder that image paths are relative to.

        Raises:
            SurgeryError: D102 to D105 and D107, naming the place.
        """


@cache
def known_forms() -> tuple[RecordForm, ...]:
    """Every form, found in the folder `surgery/data`."""
    return tuple(form() for form in classes_in("surgery.data", RecordForm))  # type: ignore[type-abstract]


def read_record(content: Any, place: Place, images: Path) -> Record:
    """Return the record that a JSON value means.

    Raises:
        SurgeryError: D102 for a value of no known form, and what its form raises.
    """
    if isinstance(content, dict):
        form = next((form for form in known_forms() if form.matches(content)), None)
        if form:
            return form.read(content, place, images)
    keys = f"it has the keys {', '.join(content)}" if isinstance(content, dict) else "no object"
    raise SurgeryError(_of_no_form(place, keys))


def conversation(place: Place, turns: Sequence[Turn], images: Sequence[Path]) -> Record:
    """Check a conversation and return its record.

    Images without a placeholder go before the first thing that the user says.

    Raises:
        SurgeryError: D104 without an answer or with an empty one, D105 for an image that isn't
            there, D107 for placeholders that don't fit the images.
    """
    answers = [turn.text for turn in turns if turn.role == "assistant"]
    if not answers or not all(answer.strip() for answer in answers):
        raise SurgeryError(_no_answer(place, empty=bool(answers)))
    missing = next((image for image in images if not image.is_file()), None)
    if missing:
        raise SurgeryError(_no_image(place, missing))
    asked = sum(turn.text.count(IMAGE) for turn in turns)
    shown = sum(turn.text.count(IMAGE) for turn in turns if turn.role == "user")
    if asked == 0:
        turns = _shown_first(turns, len(images))
    elif asked != shown or asked != len(images):
        raise SurgeryError(_other_images(place, asked, shown, len(images)))
    return Record(place, tuple(turns), tuple(images))


def bad_form(place: Place, why: str) -> NoReturn:
    """Raise D102 for a record whose form is recognised and broken."""
    raise SurgeryError(Diagnostic("D102", f"{place}: this record can't be read", why, _FORMS))


def bad_role(place: Place, role: object, known: Sequence[str]) -> NoReturn:
    """Raise D103."""
    what = f"{place}: `{role}` is no role of a conversation"
    raise SurgeryError(Diagnostic("D103", what, fix=f"name one of {', '.join(known)}"))


def _shown_first(turns: Sequence[Turn], images: int) -> list[Turn]:
    first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
    if not images or first is None:
        return list(turns)
    text = f"{IMAGE}\n" * images + turns[first].text
    return [*turns[:first], Turn("user", text), *turns[first + 1 :]]


_FORMS: Final = (
    'write {"conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}]}, '
    '{"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}]} '
    'or {"text": …}'
)


def _of_no_form(place: Place, why: str) -> Diagnostic:
    return Diagnostic("D102", f"{place}: this record is of no known form", why, _FORMS)


def _no_answer(place: Place, *, empty: bool) -> Diagnostic:
    return Diagnostic(
        code="D104",
        what=f"{place}: {'an answer is empty' if empty else 'nobody answers'}",
        why="only answers are learned from, so each must say something",
        fix="write the answer, or leave the record out with bad_records=skip",
    )


def _no_image(place: Place, image: Path) -> Diagnostic:
    return Diagnostic(
        code="D105",
        what=f"{place}: the image `{image}` is not there",
        fix="name the folder that image paths are relative to with `images`, copy the file there, "
        "or leave such records out with bad_records=skip",
    )


def _other_images(place: Place, asked: int, shown: int, images: int) -> Diagnostic:
    apart = "" if asked == shown else ", some of them not in what the user says"
    return Diagnostic(
        code="D107",
        what=f"{place}: {asked} `{IMAGE}` for {images} images{apart}",
        fix=f"write `{IMAGE}` in the user's turns once for each image, or nowhere: they then go "
        "first",
    )
