"""Questions whose answers are generated and compared with the expected ones.

Imports torch at the top, since its callers do.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch

from surgery.data.base import IMAGE, Record
from surgery.data.encoder import IGNORED, Encoder
from surgery.data.file_reader import MAX_REPORTED, DataFile
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.evaluation.predictions import Prediction, normalized
from surgery.recipe.training_schema import Source

_BATCH: Final = 16


def read_questions(
    questions: str | os.PathLike[str] | None,
    images: str | os.PathLike[str] | None,
    encoder: Encoder,
) -> list[Record]:
    """Read conversations whose answers are asked for, which the chat template must be able to ask.

    Args:
        questions: Path of a data file; None for no questions.
        images: Folder that image paths are relative to; the file's own by default.
        encoder: Encoder of the model.

    Raises:
        SurgeryError: D for the file and its records.
    """
    if questions is None:
        return []
    records = list(DataFile(Source(file=str(questions), images=str(images or ""))))
    bad: list[Diagnostic] = []
    for record in records:
        try:
            encoder.check_questions(record)
        except SurgeryError as error:
            bad += error.diagnostics
    if bad:
        raise SurgeryError(bad[:MAX_REPORTED])
    return records


@torch.no_grad()
def predictions_of(
    path: str,
    model: Any,
    records: Sequence[Record],
    encoder: Encoder,
    new_tokens: int = 32,
    is_routed: bool = False,
) -> list[Prediction]:
    """Generate each answer greedily, and compare it with the expected one, after `normalized`.

    Args:
        path: Name of the path that the model is on.
        model: A model on the measured path.
        records: Conversations; each answer is asked for with all turns before it.
        encoder: Encoder of the model.
        new_tokens: Maximum length of an answer, in tokens; 32 by default.
        is_routed: Whether the model needs a mask of image tokens; False by default.
    """
    pairs = [pair for record in records for pair in asked_of(record)]
    predictions: list[Prediction] = []
    for first in range(0, len(pairs), _BATCH):
        part = pairs[first : first + _BATCH]
        inputs = encoder.prompts(part).to(model.device)
        if is_routed:
            inputs["image_mask"] = inputs["input_ids"] == (encoder.image_token or IGNORED)
        made = model.generate(
            **inputs, do_sample=False, max_new_tokens=new_tokens, pad_token_id=encoder.pad_token_id
        )
        texts = encoder.tokenizer.batch_decode(
            made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        predictions += [
            _prediction(path, *pair, text) for pair, text in zip(part, texts, strict=True)
        ]
    return predictions


def _prediction(path: str, record: Record, at: int, answer: str) -> Prediction:
    """The generated answer for one turn of a conversation, with the expected one."""
    wanted, before = record.turns[at].text, record.turns[:at]
    question = next((turn.text for turn in reversed(before) if turn.role != "assistant"), "")
    shown = sum(turn.text.count(IMAGE) for turn in before)
    where = str(record.location.file), record.location.line
    is_right = normalized(answer) == normalized(wanted)
    return Prediction(
        path, *where, question.replace(IMAGE, "").strip(), shown, wanted, answer, is_right
    )


def asked_of(record: Record) -> Iterator[tuple[Record, int]]:
    """Each answer of a conversation that training would learn, with the index of its turn."""
    for at, turn in enumerate(record.turns):
        if turn.role == "assistant" and turn.is_learned:
            yield record, at
