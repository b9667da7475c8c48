"""What a quantised export is calibrated on: records of the user, or a few built-in sentences.

Imports torch at the top, as encoding them does.
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

from surgery.data.encode import Encoder, Row
from surgery.data.files import DataFile
from surgery.data.rows import Rows
from surgery.sentences import CALIBRATION
from surgery.stage import Source

MOST: Final = 64
"""Rows of a user's file that are taken."""


def prompts_of(processor: Any, file: Path | None, length: int) -> Sequence[Row]:
    """Return the prompts, of which the last is kept for measuring.

    Args:
        processor: of the model, or its tokenizer.
        file: records in a form of `surgery train`, images relative to it; None for the built-in.
        length: tokens of one, at most.

    Raises:
        SurgeryError: D101 to D110 for the file.
    """
    encoder = Encoder(processor, length)
    if file is None:
        return [row for text in CALIBRATION for row in encoder.text(text)]
    return list(islice(Rows(DataFile(Source(file=str(file))), encoder), MOST))
