"""From the scores of single runs to one row for each recipe: mean, range, and what is in doubt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean

from study.score import Score

FULL_FINETUNING = "full_finetune"


@dataclass(frozen=True)
class Figure:
    """A figure over the seeds."""

    values: tuple[float, ...]

    def __str__(self) -> str:
        if not self.values:
            return ""
        low, high = min(self.values), max(self.values)
        spread = f" ({low:.1f} to {high:.1f})" if len(self.values) > 1 else ""
        return f"{self.mean:.1f}{spread}"

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return mean(self.values)

    def differs(self, other: Figure) -> bool:
        """Whether the ranges over the seeds don't touch; never with one seed."""
        if min(len(self.values), len(other.values)) < 2:
            return False
        above, below = min(self.values) > max(other.values), max(self.values) < min(other.values)
        return above or below


@dataclass(frozen=True)
class Row:
    """A recipe over its seeds.

    Args:
        recipe: its name.
        mixed: whether text was mixed in.
        trainable: parameters.
        answers: percent of right answers.
        retention: percent of full fine-tuning's right answers on the same data, seed by seed.
        shared: percent of the base's text that is left on the multimodal path.
        text: the same on the text path; empty without one.
        kinds: percent of right answers by kind.
        losses: (step, training loss), mean over the seeds.
    """

    recipe: str
    mixed: bool
    trainable: int
    answers: Figure
    retention: Figure
    shared: Figure
    text: Figure
    kinds: dict[str, Figure]
    losses: list[tuple[int, float]]

    @property
    def name(self) -> str:
        """The recipe's name, and whether there was text."""
        return f"{self.recipe} + text" if self.mixed else self.recipe


def summarise(scores: Sequence[Score]) -> list[Row]:
    """One row for each recipe, with and without text, in the order in which they ran."""
    groups: dict[tuple[str, bool], list[Score]] = {}
    for score in scores:
        groups.setdefault((score.recipe, score.mixed), []).append(score)
    full = {(s.mixed, s.seed): s.answers for s in scores if s.recipe == FULL_FINETUNING}
    return [_row(group, full) for group in groups.values()]


def in_doubt(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Neighbors in the ranking by right answers whose ranges over the seeds touch."""
    ranked = sorted(rows, key=lambda row: -row.answers.mean)
    return [(one, two) for one, two in pairwise(ranked) if not one.answers.differs(two.answers)]


def _row(group: Sequence[Score], full: dict[tuple[bool, int], float]) -> Row:
    first = group[0]
    known = [(s, full.get((s.mixed, s.seed))) for s in group]
    kinds = {k: Figure(tuple(100 * s.by_kind[k] for s in group)) for k in first.by_kind}
    curves = zip(*(score.losses for score in group), strict=True)
    return Row(
        recipe=first.recipe,
        mixed=first.mixed,
        trainable=first.trainable,
        answers=Figure(tuple(s.answers for s in group)),
        retention=Figure(tuple(100 * s.answers / best for s, best in known if best)),
        shared=_figure(s.retention("shared") for s in group),
        text=_figure(s.retention("text") for s in group),
        kinds=kinds,
        losses=[(points[0][0], mean(loss for _, loss in points)) for points in curves],
    )


def _figure(values: Iterable[float | None]) -> Figure:
    return Figure(tuple(value for value in values if value is not None))
