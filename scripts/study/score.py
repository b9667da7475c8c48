"""What a trained adapter can do: answers by kind of question, and held-out text on both paths."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from study.pictures import KINDS
from surgery.adapter.folder import load_adapter, read_plan
from surgery.data.encoder import Encoder
from surgery.data.file_reader import DataFile
from surgery.data.vocabulary import load_processor
from surgery.evaluation.evaluate import accuracy, evaluate_adapter
from surgery.recipe.training_schema import Source

ANSWER_TOKENS = 5
TEXT_LENGTH = 512


@dataclass(frozen=True)
class Score:
    """The figures of one adapter.

    Args:
        recipe: its name.
        mixed: whether text was mixed in.
        seed: of the recipe and of the model that it starts from.
        trainable: parameters.
        by_kind: share of right answers, 0 to 1, by kind of question.
        perplexity: of held-out text by `base`, `shared` and, where there is such a path, `text`.
        losses: (step, training loss), the learning curve.
        seconds: of the training.
    """

    recipe: str
    mixed: bool
    seed: int
    trainable: int
    by_kind: Mapping[str, float]
    perplexity: Mapping[str, float]
    losses: list[tuple[int, float]]
    seconds: float

    @property
    def answers(self) -> float:
        """The multimodal score in percent: the mean over the kinds, as the paper's is over sets."""
        return 100 * sum(self.by_kind.values()) / len(self.by_kind)

    def retention(self, path: str) -> float | None:
        """Percent of the base's perplexity that a path keeps; None without that path."""
        found = self.perplexity.get(path)
        return found and 100 * (self.perplexity["base"] / found)

    def document(self) -> dict[str, Any]:
        """The figures as plain data."""
        paths = {"shared": self.retention("shared"), "text": self.retention("text")}
        return {**asdict(self), "answers": self.answers, "retention": paths}


def score(result: Mapping[str, Any], mixed: bool, data: Path, text: Path) -> Score:
    """Measure what a job of the sweep trained.

    Args:
        result: its result.json.
        mixed: whether text was mixed in.
        data: the folder of pictures, with a JSONL file of held-out questions of each kind.
        text: held-out text.
    """
    folder = Path(result["folder"]) / "adapter"
    plan, document = read_plan(folder)
    language = evaluate_adapter(folder, text=text, length=TEXT_LENGTH)
    return Score(
        recipe=result["recipe"],
        mixed=mixed,
        seed=int(document["recipe"]["seed"]),
        trainable=result["parameters"]["trainable"],
        by_kind=_answers(folder, plan, data),
        perplexity=language.perplexity,
        losses=_losses(folder / "log.csv"),
        seconds=result["seconds"],
    )


def broken_promises(scores: list[Score]) -> list[str]:
    """What should hold to the last bit and doesn't: the text path's perplexity is the base's.

    Every recipe that keeps its base promises it, CogVLM's with its LoRA switched off.
    """
    return [
        f"{s.recipe}, seed {s.seed}: {s.perplexity['text']!r} for {s.perplexity['base']!r}"
        for s in scores
        if s.perplexity.get("text", s.perplexity["base"]) != s.perplexity["base"]
    ]


def _answers(folder: Path, plan: Any, data: Path) -> dict[str, float]:
    assert plan.files is not None
    encoder = Encoder(load_processor(plan.files.folder), TEXT_LENGTH)
    model = load_adapter(folder).eval()
    shares = {}
    for kind in KINDS:
        records = list(DataFile(Source(file=str(data / f"{kind}.jsonl"))))
        share = accuracy(model, records, encoder, ANSWER_TOKENS, plan.is_routed)
        assert share is not None
        shares[kind] = share
    return shares


def _losses(file: Path) -> list[tuple[int, float]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(stream)]
