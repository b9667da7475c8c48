"""What a model answered to each question, beside what was written, as lines of JSON."""

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from surgery.storage.atomic_text import replace_text

_SPACE: Final = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class Prediction:
    """One answer of a model on one path.

    Args:
        path: `base`, `shared` or `text`.
        file: Of the conversation.
        line: Of the conversation in it, from 1.
        question: The last words before the answer.
        images: How many pictures were shown.
        wanted: The answer as it is written.
        answer: The answer as it was generated, special tokens left out.
        right: Whether the two are the same after `normalised`.
    """

    path: str
    file: str
    line: int
    question: str
    images: int
    wanted: str
    answer: str
    right: bool


def normalized(answer: str) -> str:
    """An answer without case, outer punctuation and spaces that differ."""
    return _SPACE.sub(" ", answer).strip(" .,;:!?\"'").casefold()


def write_predictions(file: Path, predictions: Iterable[Prediction]) -> None:
    """Write one JSON object a line; a file that is there is replaced.

    Raises:
        SurgeryError: A302 to A304 for the disk.
    """
    lines = (json.dumps(asdict(each), ensure_ascii=False) for each in predictions)
    replace_text(file, "".join(f"{line}\n" for line in lines))
