"""One record of a data file, of any format: turns of a conversation with images, or text."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, NoReturn

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.plugins import classes_in

Role = Literal["system", "user", "assistant"]
IMAGE: Final = "<image>"
"""Placeholder of an image in a turn's text, as LLaVA writes it."""


@dataclass(frozen=True, slots=True)
class RecordLocation:
    """Location of a record.

    Args:
        file: Path of its data file.
        line: 1-based number of its first line; 0 for what has no lines.
        record: 1-based number in an array of records, which may be one line; 0 elsewhere.
    """

    file: Path
    line: int
    record: int = 0

    def __str__(self) -> str:
        line = f":{self.line}" if self.line else ""
        return f"{self.file}{line}{f', record {self.record}' if self.record else ''}"


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation.

    Args:
        role: Speaker.
        text: Text, with `IMAGE` where an image is.
        is_learned: Whether an answer is learned, as by default; other turns never are.
    """

    role: Role
    text: str
    is_learned: bool = True


@dataclass(frozen=True, slots=True)
class Record:
    """A conversation, or a text.

    Args:
        location: File, line and record number.
        turns: Turns of a conversation; empty for a text.
        images: Paths of its images, in the order of their placeholders.
        text: Text that is learned completely; empty for a conversation.
        tools: Descriptions of functions that the chat template writes into the prompt.
        unused: Further keys, as diagnostics name them.
    """

    location: RecordLocation
    turns: tuple[Turn, ...] = ()
    images: tuple[Path, ...] = ()
    text: str = ""
    tools: tuple[dict[str, Any], ...] = ()
    unused: tuple[str, ...] = ()

    def images_before(self, end: int) -> tuple[Path, ...]:
        """The images of the turns before index `end`."""
        return self.images[: sum(turn.text.count(IMAGE) for turn in self.turns[:end])]


class RecordForm(ABC):
    """A format of records; a module of `surgery/data/formats` defines one."""

    key: ClassVar[str]
    """Key by which a record of this format is recognized."""
    used: ClassVar[frozenset[str]]
    """Keys that are read, `key` included."""

    @abstractmethod
    def read(self, content: dict[str, Any], location: RecordLocation, images: Path) -> Record:
        """Return the record.

        Args:
            content: A JSON object with `key`, without empty columns.
            location: File, line and record number.
            images: Folder that image paths are relative to.

        Raises:
            SurgeryError: D102 to D105, D107 and D115, with the location.
        """


@cache
def known_forms() -> tuple[RecordForm, ...]:
    """Every format, found in the folder `surgery/data/formats`."""
    return tuple(form() for form in classes_in("surgery.data.formats", RecordForm))  # type: ignore[type-abstract]


def read_record(content: Any, location: RecordLocation, images: Path) -> Record:
    """Return the record of a JSON value; what isn't JSON is the ValueError of parsing it.

    Raises:
        SurgeryError: D102 for a value of no known format, D115 for keys that can't be honored, and
            what its format raises.
    """
    if not isinstance(content, dict):
        why = str(content) if isinstance(content, ValueError) else "no object"
        raise SurgeryError(diagnostic("D102.unknown", location=location, why=why))
    _refuse_surrogates(content, location)
    forms = [form for form in known_forms() if form.key in content]
    filled = [form for form in forms if not is_blank(content[form.key])] or forms
    if len(filled) != 1:
        keys = ", ".join(form.key for form in filled) or ", ".join(content)
        raise SurgeryError(
            diagnostic("D102.unknown", location=location, why=f"it has the keys {keys}")
        )
    form = filled[0]
    given = {k: v for k, v in content.items() if k == form.key or not is_blank(v)}
    record = form.read(given, location, images)
    unused = refuse_meaning(given.keys() - form.used, location, f"a record with `{form.key}`")
    return replace(record, unused=(*record.unused, *unused))


def is_blank(value: Any) -> bool:
    """Whether a value is null or empty, as a table fills the columns of other rows."""
    return value is None or value in ("", [], {})


def refuse_meaning(keys: Set[str], location: RecordLocation, where: str) -> list[str]:
    """Return the names of keys that may be ignored, except those that only name a record.

    Args:
        keys: Keys that `where` doesn't use.
        location: File, line and record number.
        where: What has the keys, for diagnostics.

    Raises:
        SurgeryError: D115, if one of them would change what is learned.
    """
    meant = sorted(_MEANT.intersection(keys))
    if meant:
        raise SurgeryError(
            diagnostic(
                "D115.keys",
                location=location,
                where=where,
                keys=[f"`{key}`" for key in meant],
            )
        )
    return [f"`{key}`" for key in sorted(keys - _NAMES)]


def tool_name(tool: dict[str, Any]) -> Any:
    """The name in a tool's description; None where it has none."""
    inner = tool.get("function", tool)
    return inner.get("name") if isinstance(inner, dict) else None


def bad_form(location: RecordLocation, why: str) -> NoReturn:
    """Raise D102 for a record of a known format that is malformed."""
    raise SurgeryError(diagnostic("D102.malformed", location=location, why=why))


def bad_role(location: RecordLocation, role: object, known: Sequence[str]) -> NoReturn:
    """Raise D103."""
    raise SurgeryError(diagnostic("D103", location=location, role=role, known=list(known)))


def _refuse_surrogates(content: dict[str, Any], location: RecordLocation) -> None:
    """Refuse a lone surrogate, as a split pair leaves; no tokenizer or file system takes one."""
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])[1:-1]
        bad_form(location, f"`{half}` is half a character: its other half is missing")
    except RecursionError:
        bad_form(location, "it is nested too deeply")


_NAMES: Final = frozenset({"id"})
"""Keys that only name a record."""

_MEANT: Final = frozenset(
    {"image", "images", "video", "videos", "audio", "audios", "messages", "conversations"}
    | {"system", "system_prompt", "tools", "functions", "function_call", "tool_calls"}
    | {"tool_call_id", "reasoning", "reasoning_content", "thinking"}
)
"""Keys without which a record means something else."""

_FORMS: Final = (
    'write {"conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}]}, '
    '{"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}]} '
    'or {"text": …}'
)


def no_answer(location: RecordLocation, why: str) -> Diagnostic:
    """D104, for a record of which no answer can be learned or asked for."""
    return diagnostic("D104.no_answer", location=location, why=why)
