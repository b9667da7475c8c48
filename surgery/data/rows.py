"""The rows of one data file: conversations encoded when they are asked for, texts at once."""

from collections.abc import Sequence
from typing import Literal

import torch

from surgery.data.encode import Encoder, Row
from surgery.data.files import DataFile
from surgery.data.record import Record
from surgery.diagnostic import Diagnostic, SurgeryError


class Rows(Sequence[Row]):
    """What a model learns from one file.

    Args:
        file: the usable records, by what can be said without a look at images and tokens.
        encoder: of the model.
        bad_records: whether a record that turns out bad is an error, or the next one stands in.
    """

    def __init__(
        self, file: DataFile, encoder: Encoder, bad_records: Literal["error", "skip"] = "error"
    ) -> None:
        self.sees = file.sees
        self.bad = list(file.bad)
        """What was wrong with the records that were left out, as far as this process knows."""
        self._file, self._encoder, self._strict = file, encoder, bad_records == "error"
        self._entries: Sequence[int | Row] = range(len(file))
        if file.has_text:
            self._entries = [e for i in range(len(file)) for e in self._blocks(i, file[i])]
        # shared, so that what a worker of a loader leaves out is counted
        self._bad: torch.Tensor = torch.zeros(len(self._entries), dtype=torch.bool)
        self._bad.share_memory_()  # type: ignore[no-untyped-call]

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]
        """Return a row; with `skip`, the next usable one for a bad one.

        Raises:
            SurgeryError: for `error`, what is wrong with the record; D109, if all are bad.
        """
        if index >= len(self):
            raise IndexError(index)
        last: SurgeryError | None = None
        for step in range(len(self)):
            at = (index + step) % len(self)
            if self._bad[at]:
                continue
            try:
                return self._encoded(self._entries[at])
            except SurgeryError as error:
                if self._strict:
                    raise
                last, self._bad[at] = error, True
                self.bad += error.diagnostics
        raise SurgeryError(_all_bad(str(self._file.file))) from last

    @property
    def skipped(self) -> int:
        """How many records were left out, before or at their row."""
        return len(self._file.bad) + int(self._bad.sum())

    def _encoded(self, entry: int | Row) -> Row:
        return entry if isinstance(entry, Row) else self._encoder.conversation(self._file[entry])

    def _blocks(self, index: int, record: Record) -> list[int | Row]:
        return list(self._encoder.text(record.text)) if record.text else [index]


def _all_bad(file: str) -> Diagnostic:
    return Diagnostic(
        code="D109",
        what=f"`{file}` has no usable record",
        why="each turned out bad when it was encoded",
        fix="take bad_records=skip away to see what is wrong with the first",
        key="data",
    )
