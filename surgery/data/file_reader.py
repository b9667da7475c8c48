"""The records of a data file: JSON, JSONL or plain text, read by line and not kept in memory.

A JSON file, which is one array, is kept in memory; of a JSONL file only the offsets of its lines
are, so that a file of millions of records costs 16 bytes for each.
"""

import hashlib
import json
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from surgery.data.base import Record, RecordLocation, read_record
from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.diagnostics.wording import first_line
from surgery.recipe.training_schema import Source

MAX_REPORTED: Final = 5
"""Maximum number of bad records that are reported at once."""

_BETWEEN: Final = re.compile(r"[\s,]*")


class DataFile(Sequence[Record]):
    """The usable records of one file.

    Args:
        source: Path of the file, and folder of its images.
        bad_records: Whether a bad record is an error, as by default, or skipped.

    Raises:
        SurgeryError: D101 if the file can't be read, D109 if no record of it is usable; for `error`
            all that is wrong with its records, at most `MAX_REPORTED` of them.
    """

    def __init__(self, source: Source, bad_records: Literal["error", "skip"] = "error") -> None:
        self.file = Path(source.file).expanduser()
        self.images = Path(source.images or self.file.parent).expanduser()
        self.bad: list[Diagnostic] = []
        """What is wrong with the records that were left out."""
        self.has_images = False
        """Whether any record has images."""
        self.has_text = False
        """Whether any record is a text."""
        self._image_hash = hashlib.sha256()
        self._unused: dict[str, int] = {}
        self._positions = array("q")
        self._array: list[Any] = []
        self._is_array = False
        self._read_all(bad_records)

    def __len__(self) -> int:
        return len(self._positions) // 2

    def __getitem__(self, index: Any) -> Any:
        line, at = self._positions[2 * index], self._positions[2 * index + 1]
        content = self._array[at] if self._array else self._parsed(self._line_at(at), line)
        return read_record(content, self._location(line, at), self.images)

    def _line_at(self, at: int) -> bytes:
        try:
            with self.file.open("rb") as stream:
                stream.seek(at)
                return stream.readline()
        except OSError as error:
            raise SurgeryError(_unreadable(self.file, first_line(error))) from error

    @property
    def notes(self) -> list[Diagnostic]:
        """A warning with what its usable records have that is not used; empty where all is used."""
        return [_not_used(self.file, self._unused)] if self._unused else []

    def digest(self) -> str:
        """SHA-256 in hex of the file, and of its images' names, sizes and times.

        Raises:
            SurgeryError: D101 if the file can't be read.
        """
        try:
            with self.file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").digest()
        except OSError as error:
            raise SurgeryError(_unreadable(self.file, first_line(error))) from error
        return hashlib.sha256(content + self._image_hash.digest()).hexdigest()

    def _note(self, images: Sequence[Path]) -> None:
        for image in images:
            about = image.stat()
            self._image_hash.update(
                f"{image}\0{about.st_size}\0{about.st_mtime_ns}\0".encode(errors="surrogateescape")
            )

    def _read_all(self, bad_records: str) -> None:
        for line, at, content in self._contents():
            try:
                record = read_record(content, self._location(line, at), self.images)
            except SurgeryError as error:
                self.bad += error.diagnostics
                if bad_records == "error" and len(self.bad) >= MAX_REPORTED:
                    break
                continue
            self.has_images |= bool(record.images)
            self.has_text |= bool(record.text)
            self._note(record.images)
            for name in record.unused:
                self._unused.setdefault(name, line)
            self._positions.extend((line, at))
        if self.bad and bad_records == "error":
            raise SurgeryError(self.bad)
        if not self._positions:
            raise SurgeryError(no_usable_record(self.file, self.bad))

    def _location(self, line: int, at: int) -> RecordLocation:
        return RecordLocation(self.file, line, at + 1 if self._is_array else 0)

    def _contents(self) -> Iterator[tuple[int, int, Any]]:
        """Line, position in the file or array, and JSON value of each record."""
        try:
            _refuse_device(self.file)
            with self.file.open("rb") as stream:
                first = stream.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
            if first == b"[":
                yield from self._of_array()
            elif self.file.suffix in (".json", ".jsonl") or first == b"{":
                yield from self._of_lines()
            else:
                self._array = [{"text": self.file.read_text(encoding="utf-8")}]
                yield 1, 0, self._array[0]
        except (OSError, ValueError) as error:
            raise SurgeryError(_unreadable(self.file, first_line(error))) from error

    def _of_lines(self) -> Iterator[tuple[int, int, Any]]:
        at = 0
        with self.file.open("rb") as stream:
            for line, text in enumerate(stream, start=1):
                if text.strip():
                    yield line, at, self._parsed(text, line)
                at += len(text)

    def _of_array(self) -> Iterator[tuple[int, int, Any]]:
        self._is_array = True
        text = self.file.read_text(encoding="utf-8-sig")
        decoder, line, at = json.JSONDecoder(), 1, text.index("[") + 1
        done = 0
        while True:
            at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]
            line += text.count("\n", done, at)
            done = at
            if text[at : at + 1] == "]":
                self._refuse_more(text[at + 1 :], line)
                return
            try:
                content, at = decoder.raw_decode(text, at)
            except (ValueError, RecursionError) as error:
                raise SurgeryError(_unreadable(self.file, f"line {line}: {error}")) from error
            self._array.append(content)
            yield line, len(self._array) - 1, content

    def _refuse_more(self, rest: str, line: int) -> None:
        if rest.strip():
            why = f"line {line}: more follows where its array of records ends"
            raise SurgeryError(_unreadable(self.file, why))

    def _parsed(self, text: bytes, line: int) -> Any:
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            # an error has no known format, so that the record is bad and not the file
            return ValueError(f"line {line} is not JSON: {error}")


def _refuse_device(file: Path) -> None:
    """Refuse what can't be read twice, or never ends; a missing file is reported on opening."""
    if file.exists() and not file.is_file() and not file.is_dir():
        raise SurgeryError(
            _unreadable(file, "it is a pipe or a device, and is read more than once")
        )


def _unreadable(file: Path, why: str) -> Diagnostic:
    return diagnostic("D101", file=file, why=why, key="data")


def _not_used(file: Path, unused: Mapping[str, int]) -> Diagnostic:
    named = ", ".join(f"{name} (line {line})" for name, line in unused.items())
    return diagnostic("D117", file=file, named=named)


def no_usable_record(file: Path, bad: Sequence[Diagnostic]) -> Diagnostic:
    """D109, for a file whose records are all bad.

    Args:
        file: Path of the data file.
        bad: What is wrong with its records.
    """
    return diagnostic(
        "D109",
        file=file,
        reason=f"{len(bad)} were left out, the first because: {bad[0].what}"
        if bad
        else "it is empty",
        key="data",
    )
