"""The effect of training on language and answers: perplexity on both paths, and accuracy.

The shared path is the multimodal one without images, the paper's shared base; the text path is its
non-shared base. Both are compared with the untouched base, which is loaded separately.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from surgery.data.base import Record
from surgery.data.collator import Collator
from surgery.data.encoder import IGNORED, Encoder, Row
from surgery.data.file_reader import DataFile
from surgery.data.rows import Rows
from surgery.data.vocabulary import embedding_rows, load_processor, refuse_ids_without_rows
from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.evaluation.predictions import Prediction, write_predictions
from surgery.evaluation.questions import asked_of, predictions_of, read_questions
from surgery.evaluation.subject import BASE, SHARED, open_evaluated
from surgery.model.quiet import quiet
from surgery.recipe.training_schema import Source
from surgery.storage.atomic_text import try_text
from surgery.storage.inputs import Input
from surgery.storage.json_file import read_object
from surgery.storage.safetensors.header import read_errors

HELD_OUT: Final = "heldout.jsonl"
"""Text in the folder of a base that is in none of its training data."""

_BATCH: Final = 16


@dataclass(frozen=True)
class Evaluation:
    """The metrics of one adapter.

    Args:
        adapter: Path of its folder.
        model: Its base.
        recipe: Name of its recipe.
        perplexity: Perplexity of held-out text by `base`, `shared` and `text`; without `text` where
            the base trains in place.
        tokens: Number of tokens of the perplexity.
        accuracy: Share of right answers, 0 to 1, by the same names; `shared` for all questions, the
            others for questions without images.
        answers: Number of answers.
        references: Perplexities and accuracies to compare with, by names such as
            `perplexity.shared`.
        predictions: Every answer on every path.
    """

    adapter: str
    model: str
    recipe: str
    perplexity: Mapping[str, float]
    tokens: int
    accuracy: Mapping[str, float]
    answers: int
    references: Mapping[str, float]
    predictions: tuple[Prediction, ...] = field(default=(), repr=False)

    def figures(self) -> dict[str, float]:
        """Every metric by its full name."""
        named = {"perplexity": self.perplexity, "accuracy": self.accuracy}
        return {f"{kind}.{path}": x for kind, by in named.items() for path, x in by.items()}

    def retention(self) -> dict[str, float]:
        """Each metric in percent of the reference's, or of the base's without a reference.

        For a perplexity, the inverse: a perplexity twice as high is 50 percent, too.
        """
        figures = self.figures()
        base = {name: figures.get(f"{name.partition('.')[0]}.{BASE}", 0.0) for name in figures}
        pairs = {name: (x, self.references.get(name, base[name])) for name, x in figures.items()}
        return {
            name: 100 * (reference / x if name.startswith("perplexity") else x / reference)
            for name, (x, reference) in pairs.items()
            if x and reference and not name.endswith(f".{BASE}")
        }

    def document(self) -> dict[str, Any]:
        """The evaluation as a JSON document."""
        return {
            "adapter": self.adapter,
            "model": self.model,
            "recipe": self.recipe,
            "perplexity": dict(self.perplexity),
            "tokens": self.tokens,
            "accuracy": dict(self.accuracy),
            "answers": self.answers,
            "references": dict(self.references),
            "retention": self.retention(),
        }


@quiet()
def evaluate_adapter(
    folder: str | os.PathLike[str],
    *,
    text: str | os.PathLike[str] | None = None,
    questions: str | os.PathLike[str] | None = None,
    images: str | os.PathLike[str] | None = None,
    reference: str | os.PathLike[str] | None = None,
    predictions: str | os.PathLike[str] | None = None,
    length: int = 512,
    new_tokens: int = 32,
    base: str | os.PathLike[str] | None = None,
    trust_remote_code: bool = False,
) -> Evaluation:
    """Measure an adapter, or an export of one, and its base.

    Args:
        folder: Path of what `surgery train`, `apply`, `save_adapter` or `export --to hf` wrote.
        text: Path of held-out text in a format of `surgery train`; the base's own by default.
        questions: Path of conversations whose answers are compared.
        images: Folder that their image paths are relative to; that of `questions` by default.
        reference: Path of the output of `surgery evaluate --format json` for another adapter.
        predictions: Path of a JSONL file for every answer, with question and expected answer.
        length: Length of a block of text, in tokens; 512 by default. Blocks don't overlap.
        new_tokens: Maximum length of an answer, in tokens; 32 by default.
        base: Path or hub id of the base; the one that the plan names by default.
        trust_remote_code: Whether the base may run its own Python code; False by default.

    Raises:
        SurgeryError: T113 with nothing to measure; D for the files, A401, A402 and A606 for the
            folder.
    """
    folder = Path(folder)
    known = _references(reference)
    evaluated = open_evaluated(folder, base=base, trust_remote_code=trust_remote_code)
    if predictions:
        others = _other_inputs(text, questions, images, reference)
        try_text(Path(predictions), inputs=[*evaluated.inputs, *others])
    processor = load_processor(evaluated.processor_folder, trust_remote_code=trust_remote_code)
    encoder = Encoder(processor, length)
    rows = _text_rows(evaluated.processor_folder, text, encoder)
    records = read_questions(questions, images, encoder)
    if not rows and not records:
        raise SurgeryError(diagnostic("T113", folder=folder, held_out=HELD_OUT))
    meter = _Measurement(
        evaluated.processor_folder, evaluated.is_routed, encoder, rows, records, new_tokens
    )
    losses: dict[str, float] = {}
    right: dict[str, float] = {}
    answered: list[Prediction] = []
    for measured in evaluated.each(meter.measure):
        losses |= measured[0]
        right |= measured[1]
        answered += measured[2]
    if predictions:
        write_predictions(Path(predictions), answered)
    tokens = sum(int((row.labels != IGNORED).sum()) for row in rows)
    answers = sum(1 for record in records for _ in asked_of(record))
    names = str(folder), evaluated.model, evaluated.recipe
    return Evaluation(*names, losses, tokens, right, answers, known, tuple(answered))


def _other_inputs(
    text: str | os.PathLike[str] | None,
    questions: str | os.PathLike[str] | None,
    images: str | os.PathLike[str] | None,
    reference: str | os.PathLike[str] | None,
) -> Iterator[Input]:
    """Paths that are read besides the adapter and its base."""
    named = {"the text": text, "the questions": questions, "the reference": reference}
    yield from (Input(Path(path), name) for name, path in named.items() if path)
    if questions:
        yield Input(Path(images or Path(questions).parent), "the pictures", open=True)


@dataclass(frozen=True)
class _Measurement:
    """What is measured on each path."""

    processor_folder: Path
    is_routed: bool
    encoder: Encoder
    rows: Sequence[Row]
    records: Sequence[Record]
    new_tokens: int

    def measure(
        self, model: Any, path: str
    ) -> tuple[dict[str, float], dict[str, float], list[Prediction]]:
        """Perplexity and accuracy of a model on a path, by the path's name; and its answers."""
        refuse_ids_without_rows(
            self.encoder.tokenizer, embedding_rows(model), self.processor_folder
        )
        model = model.to(torch.accelerator.current_accelerator() or "cpu").eval()
        is_routed = self.is_routed and path != BASE
        records = [record for record in self.records if path == SHARED or not record.images]
        losses = {path: perplexity(model, self.rows, self.encoder, is_routed)} if self.rows else {}
        predictions = predictions_of(path, model, records, self.encoder, self.new_tokens, is_routed)
        right = (
            {path: sum(each.right for each in predictions) / len(predictions)}
            if predictions
            else {}
        )
        return losses, right, predictions


@torch.no_grad()
def perplexity(model: Any, rows: Sequence[Row], encoder: Encoder, is_routed: bool = False) -> float:
    """The perplexity of rows: exp of the mean negative log likelihood of their labels.

    Args:
        model: A model on the measured path.
        rows: Encoded rows.
        encoder: Encoder of the model.
        is_routed: Whether it needs a mask of image tokens; False by default.
    """
    collate = Collator(encoder.pad_token_id, image_token=encoder.image_token, is_routed=is_routed)
    total, count = 0.0, 0
    for first in range(0, len(rows), _BATCH):
        batch = collate([[row] for row in rows[first : first + _BATCH]])
        batch = {name: value.to(model.device) for name, value in batch.items()}
        labels = batch.pop("labels")[:, 1:]
        logits = model(**batch, use_cache=False).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
        )
        total += float(loss)
        count += int((labels != IGNORED).sum())
    return float(torch.tensor(total / count, dtype=torch.float64).exp())


def accuracy(
    model: Any,
    records: Sequence[Record],
    encoder: Encoder,
    new_tokens: int = 32,
    is_routed: bool = False,
) -> float | None:
    """Share of right answers among `predictions_of` the same arguments; None without any."""
    predictions = predictions_of(SHARED, model, records, encoder, new_tokens, is_routed)
    return sum(each.right for each in predictions) / len(predictions) if predictions else None


def _text_rows(
    processor_folder: Path, text: str | os.PathLike[str] | None, encoder: Encoder
) -> Sequence[Row]:
    file = Path(text) if text else processor_folder / HELD_OUT
    if text is None and not file.is_file():
        return []
    return list(Rows(DataFile(Source(file=str(file))), encoder))


def _references(reference: str | os.PathLike[str] | None) -> dict[str, float]:
    if reference is None:
        return {}
    file = Path(reference)
    kinds = ("perplexity", "accuracy")
    try:
        with read_errors(file):
            document = read_object(file)
        return {f"{kind}.{path}": float(x) for kind in kinds for path, x in document[kind].items()}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise SurgeryError(diagnostic("A316", file=file)) from error
