"""The rows of one data file: all checked as text, conversations encoded on access."""

from array import array
from collections.abc import Sequence
from typing import Final, Literal

import torch

from surgery.data.encoder import Encoder, Row
from surgery.data.file_reader import MAX_REPORTED, DataFile, no_usable_record
from surgery.diagnostics.diagnostic import SurgeryError

_TEXT_BLOCK: Final = -1
"""Value for the part of a conversation that marks a block of a text, which is encoded already."""


class Rows(Sequence[Row]):
    """The rows of one file.

    Every record is checked as text before any is encoded.

    Args:
        file: Its usable records.
        encoder: Encoder of the model.
        bad_records: Whether a record that turns out bad is an error, as by default, or replaced by
            the next one.

    Raises:
        SurgeryError: For `error` all that is wrong with the records' texts, at most `MAX_REPORTED`
            of them; D109, if no record is usable.
    """

    def __init__(
        self, file: DataFile, encoder: Encoder, bad_records: Literal["error", "skip"] = "error"
    ) -> None:
        self.has_images = file.has_images
        self.bad = list(file.bad)
        """What was wrong with the records that were left out, as far as this process knows."""
        self.notes = file.notes
        """What the records have that is not used, as warnings."""
        self._file, self._encoder, self._strict = file, encoder, bad_records == "error"
        self._records, self._parts = array("q"), array("q")
        self._blocks: list[Row] = []
        for index in range(len(file)):
            if not self._strict or len(self.bad) < MAX_REPORTED:
                self._add(index)
        self._left_out = len(self.bad)
        if self.bad and self._strict:
            raise SurgeryError(self.bad)
        if not self._records:
            raise SurgeryError(no_usable_record(file.file, self.bad))
        # shared, so that what a worker of a loader leaves out is counted
        self._bad: torch.Tensor = torch.zeros(len(self._records), dtype=torch.bool)
        self._bad.share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]
        """Return a row; with `skip`, the next usable one for a bad one.

        Raises:
            SurgeryError: For `error`, what is wrong with the record; D109, if all are bad.
        """
        if index >= len(self):
            raise IndexError(index)
        last: SurgeryError | None = None
        for step in range(len(self)):
            at = (index + step) % len(self)
            if self._bad[at] and not self._strict:
                continue
            try:
                return self._encoded(at)
            except SurgeryError as error:
                self._bad[at] = True
                if self._strict:
                    raise
                last = error
                self.bad += error.diagnostics
        raise SurgeryError(no_usable_record(self._file.file, self.bad)) from last

    def raise_again(self) -> None:
        """Raise the error of a row that another process found.

        Raises:
            SurgeryError: See `__getitem__`.
        """
        if self._strict and self._bad.any():
            self._encoded(int(self._bad.nonzero()[0]))
        elif self._bad.all():
            self._bad[0] = False
            self[0]

    def digest(self) -> str:
        """Digest of the data, as in `DataFile.digest`."""
        return self._file.digest()

    @property
    def skipped(self) -> int:
        """Number of records that were left out, on reading or on encoding."""
        return self._left_out + int(self._bad.sum())

    def _add(self, index: int) -> None:
        """Check a record and append its rows, or what is wrong with it."""
        try:
            record = self._file[index]
            rows = self._encoder.check(record)
            blocks = list(self._encoder.text(record.text, record.location)) if record.text else []
        except SurgeryError as error:
            self.bad += error.diagnostics
            return
        first = len(self._blocks)
        self._blocks += blocks
        self._records.extend(range(first, first + len(blocks)) if record.text else [index] * rows)
        self._parts.extend([_TEXT_BLOCK] * len(blocks) if record.text else range(rows))

    def _encoded(self, at: int) -> Row:
        index, part = self._records[at], self._parts[at]
        if part == _TEXT_BLOCK:
            return self._blocks[index]
        return self._encoder.conversation(self._file[index], part)
