"""Answers of a model and the expected ones, as lines of JSON."""

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
        file: Path of the conversation's file.
        line: 1-based number of the conversation's line.
        question: Last text before the answer.
        images: Number of images before the answer.
        wanted: Expected answer.
        answer: Generated answer, without special tokens.
        right: Whether the two are equal after `normalized`.
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
    """An answer in lower case, without outer punctuation, with single spaces."""
    return _SPACE.sub(" ", answer).strip(" .,;:!?\"'").casefold()


def write_predictions(file: Path, predictions: Iterable[Prediction]) -> None:
    """Write one JSON object a line; an existing file is replaced.

    Raises:
        SurgeryError: A302 to A304 for the disk.
    """
    lines = (json.dumps(asdict(each), ensure_ascii=False) for each in predictions)
    replace_text(file, "".join(f"{line}\n" for line in lines))
