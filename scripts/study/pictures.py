"""Handwritten digits as image question answering: PNG files, and LLaVA-style JSONL about them.

The digits are scikit-learn's `load_digits`: 1,797 of 8 x 8 pixels, a part of UCI's Optical
Recognition of Handwritten Digits. A picture shows one of them, or two side by side.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HELD_OUT = 0.2  # of the digits, each as often as in the whole
SPLIT_SEED = 0
DARKEST = 16  # the largest value of a pixel in load_digits
TRAINING, TEST = "train", "test"
Asked = tuple[str, str]
Digits = tuple[int, ...]


@dataclass(frozen=True)
class Question:
    """A question about a picture: its kind, its words, its answer, and the file of the picture."""

    kind: str
    asked: str
    answer: str
    image: str

    def record(self) -> dict[str, Any]:
        """The record in LLaVA's form."""
        turns = [
            {"from": "human", "value": f"<image>\n{self.asked}"},
            {"from": "gpt", "value": self.answer},
        ]
        return {"image": self.image, "kind": self.kind, "conversations": turns}


@dataclass(frozen=True)
class Pictures:
    """Pictures of one split.

    Args:
        arrays: (pictures, side, side), uint8, white on black.
        digits: what each shows, from left to right; one or two.
    """

    arrays: np.ndarray
    digits: list[Digits]


def _larger(digits: Digits, chance: np.random.Generator) -> Asked:
    limit = int(chance.integers(1, 9))
    return f"Is it larger than {limit}?", "yes" if digits[0] > limit else "no"


def _side(digits: Digits, chance: np.random.Generator) -> Asked:
    left, right = digits
    answer = "left" if left > right else "right" if right > left else "none"
    return "Which side is larger?", answer


KINDS: Mapping[str, tuple[int, Callable[[Digits, np.random.Generator], Asked]]] = {
    "digit": (1, lambda digits, _: ("Which digit is it?", str(digits[0]))),
    "parity": (1, lambda digits, _: ("Is it even or odd?", ("even", "odd")[digits[0] % 2])),
    "larger": (1, _larger),
    "left": (2, lambda digits, _: ("Which digit is on the left?", str(digits[0]))),
    "right": (2, lambda digits, _: ("Which digit is on the right?", str(digits[1]))),
    "side": (2, _side),
}
"""Kinds of questions by name: how many digits they are about, and what is asked and answered."""


def make_pictures(side: int, test: int) -> dict[str, Pictures]:
    """Draw both splits; no digit of one is in the other.

    Args:
        side: pixels a side.
        test: pictures with one digit, and with two, that are held out.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    known = load_digits()
    training, held_out = train_test_split(
        np.arange(len(known.target)),
        test_size=HELD_OUT,
        random_state=SPLIT_SEED,
        stratify=known.target,
    )
    chance = np.random.default_rng(SPLIT_SEED)
    splits = {}
    for name, members in ((TRAINING, training), (TEST, held_out[:test])):
        groups = [*([i] for i in members), *zip(members, chance.permutation(members), strict=True)]
        arrays = np.stack([_drawn([known.images[i] for i in group], side) for group in groups])
        digits = [tuple(int(known.target[i]) for i in group) for group in groups]
        splits[name] = Pictures(arrays, digits)
    return splits


def write_questions(folder: Path, splits: Mapping[str, Pictures]) -> dict[str, list[Question]]:
    """Write the pictures and one JSONL file for each split; return the questions of each."""
    asked = {}
    for split, pictures in splits.items():
        (folder / split).mkdir(parents=True)
        names = [f"{split}/{number:04}.png" for number in range(len(pictures.digits))]
        for name, array in zip(names, pictures.arrays, strict=True):
            Image.fromarray(array).save(folder / name)
        asked[split] = _questions(pictures, names)
        write_lines(folder / f"{split}.jsonl", (question.record() for question in asked[split]))
    return asked


def blind_accuracy(training: Iterable[Question], test: Iterable[Question]) -> dict[str, float]:
    """The share of right answers, by kind, of who knows the questions and sees no picture.

    It gives the answer that is the most frequent one to the same words in training.
    """
    counts: dict[str, Counter[str]] = {}
    for question in training:
        counts.setdefault(question.asked, Counter())[question.answer] += 1
    best = {asked: answers.most_common(1)[0][0] for asked, answers in counts.items()}
    right: dict[str, list[bool]] = {}
    for question in test:
        right.setdefault(question.kind, []).append(best.get(question.asked) == question.answer)
    return {kind: sum(answers) / len(answers) for kind, answers in right.items()}


def write_lines(file: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write rows as JSONL."""
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return file


def _drawn(images: list[np.ndarray], side: int) -> np.ndarray:
    """The digits side by side, stretched to (side, side)."""
    pixels = (np.hstack(images) * (255 / DARKEST)).astype(np.uint8)
    resized = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(resized)


def _questions(pictures: Pictures, names: list[str]) -> list[Question]:
    chance = np.random.default_rng(SPLIT_SEED)
    return [
        Question(kind, *ask(digits, chance), name)
        for digits, name in zip(pictures.digits, names, strict=True)
        for kind, (count, ask) in KINDS.items()
        if count == len(digits)
    ]
