"""One record of a data file, whatever its form: turns of a conversation with images, or text."""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, NoReturn

from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.plugins import classes_in

Role = Literal["system", "user", "assistant"]
IMAGE: Final = "<image>"
"""What stands for an image in a turn's text, as LLaVA writes it."""


@dataclass(frozen=True, slots=True)
class RecordLocation:
    """Where a record is written.

    Args:
        file: Its data file.
        line: 1-based, the line that it begins on; 0 for what has no lines.
        record: 1-based, its number in an array of records, which may be one line; 0 elsewhere.
    """

    file: Path
    line: int
    record: int = 0

    def __str__(self) -> str:
        line = f":{self.line}" if self.line else ""
        return f"{self.file}{line}{f', record {self.record}' if self.record else ''}"


@dataclass(frozen=True, slots=True)
class Turn:
    """What one side of a conversation says.

    Args:
        role: Who says it.
        text: What is said; `IMAGE` stands where an image is shown.
        is_learned: Whether an answer is learned; other turns never are.
    """

    role: Role
    text: str
    is_learned: bool = True


@dataclass(frozen=True, slots=True)
class Record:
    """A conversation, or a text.

    Args:
        location: Where it is written.
        turns: Of a conversation; empty for a text.
        images: Files of its images, in the order of their placeholders.
        text: Language to be learned whole; empty for a conversation.
        tools: Descriptions of functions that the chat template writes into the prompt.
        unused: What it has besides, as it is named to the user.
    """

    location: RecordLocation
    turns: tuple[Turn, ...] = ()
    images: tuple[Path, ...] = ()
    text: str = ""
    tools: tuple[dict[str, Any], ...] = ()
    unused: tuple[str, ...] = ()

    def images_before(self, end: int) -> tuple[Path, ...]:
        """The images of the turns before `end`."""
        return self.images[: sum(turn.text.count(IMAGE) for turn in self.turns[:end])]


class RecordForm(ABC):
    """A form that records are written in; a module of this folder defines one."""

    key: ClassVar[str]
    """The key that a record of this form has."""
    used: ClassVar[frozenset[str]]
    """The keys that it means something by, `key` included."""

    @abstractmethod
    def read(self, content: dict[str, Any], location: RecordLocation, images: Path) -> Record:
        """Return the record.

        Args:
            content: A JSON object with `key`, without empty columns.
            location: File, line and record number.
            images: The folder that image paths are relative to.

        Raises:
            SurgeryError: D102 to D105, D107 and D115, naming the location.
        """


@cache
def known_forms() -> tuple[RecordForm, ...]:
    """Every form, found in the folder `surgery/data`."""
    return tuple(form() for form in classes_in("surgery.data.formats", RecordForm))  # type: ignore[type-abstract]


def read_record(content: Any, location: RecordLocation, images: Path) -> Record:
    """Return the record that a JSON value means; what isn't JSON is the ValueError that it gave.

    Raises:
        SurgeryError: D102 for a value of no known form, D115 for keys that can't be honored, and
            what its form raises.
    """
    if not isinstance(content, dict):
        why = str(content) if isinstance(content, ValueError) else "no object"
        raise SurgeryError(_of_no_form(location, why))
    _refuse_surrogates(content, location)
    forms = [form for form in known_forms() if form.key in content]
    filled = [form for form in forms if not is_blank(content[form.key])] or forms
    if len(filled) != 1:
        keys = ", ".join(form.key for form in filled) or ", ".join(content)
        raise SurgeryError(_of_no_form(location, f"it has the keys {keys}"))
    form = filled[0]
    given = {k: v for k, v in content.items() if k == form.key or not is_blank(v)}
    record = form.read(given, location, images)
    unused = refuse_meaning(given.keys() - form.used, location, f"a record with `{form.key}`")
    return replace(record, unused=(*record.unused, *unused))


def is_blank(value: Any) -> bool:
    """Whether a value says nothing: null, or empty, as a table fills the columns of other rows."""
    return value is None or value in ("", [], {})


def refuse_meaning(keys: Set[str], location: RecordLocation, where: str) -> list[str]:
    """Return keys that may be left unused, as they are named; those of names alone are left out.

    Args:
        keys: That `where` doesn't use.
        location: File, line and record number.
        where: What has them.

    Raises:
        SurgeryError: D115, if one of them would change what is learned.
    """
    meant = sorted(_MEANT.intersection(keys))
    if meant:
        raise SurgeryError(_not_honored(location, meant, where))
    return [f"`{key}`" for key in sorted(keys - _NAMES)]


def tool_name(tool: dict[str, Any]) -> Any:
    """The name that a tool's description gives it; None where it has none."""
    inner = tool.get("function", tool)
    return inner.get("name") if isinstance(inner, dict) else None


def bad_form(location: RecordLocation, why: str) -> NoReturn:
    """Raise D102 for a record whose form is recognised and broken."""
    raise SurgeryError(Diagnostic("D102", f"{location}: this record can't be read", why, _FORMS))


def bad_role(location: RecordLocation, role: object, known: Sequence[str]) -> NoReturn:
    """Raise D103."""
    what = f"{location}: `{role}` is no role of a conversation"
    raise SurgeryError(Diagnostic("D103", what, fix=f"name one of {', '.join(known)}"))


def _refuse_surrogates(content: dict[str, Any], location: RecordLocation) -> None:
    """Refuse half a character, as a cut pair leaves; no tokenizer and no file system takes one."""
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])[1:-1]
        bad_form(location, f"`{half}` is half a character: its other half was cut off")
    except RecursionError:
        bad_form(location, "it is nested too deeply")


_NAMES: Final = frozenset({"id"})
"""Keys that only name a record."""

_MEANT: Final = frozenset(
    {"image", "images", "video", "videos", "audio", "audios", "messages", "conversations"}
    | {"system", "system_prompt", "tools", "functions", "function_call", "tool_calls"}
    | {"tool_call_id", "reasoning", "reasoning_content", "thinking"}
)
"""Keys without which a record says something else."""

_FORMS: Final = (
    'write {"conversations": [{"from": "human", "value": …}, {"from": "gpt", "value": …}]}, '
    '{"messages": [{"role": "user", "content": …}, {"role": "assistant", "content": …}]} '
    'or {"text": …}'
)


def _of_no_form(location: RecordLocation, why: str) -> Diagnostic:
    return Diagnostic("D102", f"{location}: this record is of no known form", why, _FORMS)


def _not_honored(location: RecordLocation, keys: Sequence[str], where: str) -> Diagnostic:
    return Diagnostic(
        code="D115",
        what=f"{location}: {where} can't have {', '.join(f'`{key}`' for key in keys)}",
        why="it would be left out, and the record means something else without it",
        fix="write it in a form that `surgery explain D115` shows, take it away, or leave such "
        "records out with bad_records=skip",
    )


def no_answer(location: RecordLocation, why: str) -> Diagnostic:
    """D104, for a record of which no answer can be learned or asked for."""
    return Diagnostic(
        code="D104",
        what=f"{location}: {why}",
        why="only answers are learned from, so each must say something",
        fix="write the answer, or leave the record out with bad_records=skip",
    )
