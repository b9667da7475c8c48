"""Show what the graphs of an export are given, by running it in float on a few sentences.

Encoding them imports transformers, when it is done.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from surgery.decode_loop import LORA, Arrays, DecodeLoop, Engine, parts_of
from surgery.manifest import ExportedFile, PartRecord, PathName
from surgery.sentences import SENTENCES
from surgery.snapdragon.arrays import read_arrays, write_arrays

DECODED: Final = 8
"""Tokens that are made after each sentence."""
_EACH: Final = 2
"""Samples of one graph for one sentence and path."""
_WITH_LORA: Final = "+lora"


class Recorder:
    """An engine that keeps what graphs are given, less LoRA, which is the same each time.

    Args:
        engine: runs them.
        folder: where it is kept, in a folder for each graph.
        lora: names of the inputs that aren't kept.
    """

    def __init__(self, engine: Engine, folder: Path, lora: Collection[str]) -> None:
        self._engine, self._folder, self._lora = engine, folder, lora
        self._kept: Counter[tuple[str, str]] = Counter()
        self._number, self._mark = 0, ""

    def begin(self, *, with_lora: bool) -> None:
        """Keep a few samples of each graph again.

        Args:
            with_lora: whether LoRA is on in these.
        """
        self._kept.clear()
        self._mark = _WITH_LORA if with_lora else ""

    def run(self, part: str, file: str, feeds: Arrays) -> Arrays:
        """Run a graph; see `Engine.run`."""
        self._kept[part, file] += 1
        if self._kept[part, file] <= _EACH:
            place = self._folder / part / file
            place.mkdir(parents=True, exist_ok=True)
            kept = {name: array for name, array in feeds.items() if name not in self._lora}
            write_arrays(place / f"{self._number:06}{self._mark}.npz", kept)
            self._number += 1
        return self._engine.run(part, file, feeds)


def calibrate(
    engine: Engine,
    parts: Mapping[str, PartRecord],
    paths: Mapping[PathName, Sequence[str]],
    lora: Mapping[str, Any],
    prompts: Iterable[Sequence[int]],
    folder: Path,
) -> None:
    """Run all paths on prompts, and keep samples of what each graph is given.

    Args:
        engine: runs the float graphs.
        parts: of the export.
        paths: the parts of each path; one with the part `lora` gets that.
        lora: the pairs.
        prompts: ids.
        folder: for `samples_of`.
    """
    recorder = Recorder(engine, folder, lora.keys())
    for prompt in prompts:
        for names in paths.values():
            recorder.begin(with_lora=LORA in names)
            pairs = lora if LORA in names else {}
            DecodeLoop(recorder, parts_of(names, parts), pairs).generate(prompt, DECODED, ())


def samples_of(
    folder: Path, part: str, file: ExportedFile, lora: Mapping[str, Any]
) -> list[Arrays]:
    """Return the samples of a graph in the order in which they came.

    Args:
        folder: as for `calibrate`.
        part: name of the graph's folder.
        file: the graph.
        lora: as for `calibrate`.
    """
    assert file.graph is not None
    asked = [value for value in file.graph.inputs if value.source == "lora"]
    on = {value.name: lora[value.name] for value in asked}
    off = {value.name: np.zeros(value.shape, np.float32) for value in asked}
    return [
        {**read_arrays(sample), **(on if sample.stem.endswith(_WITH_LORA) else off)}
        for sample in sorted((folder / part / file.name).glob("*.npz"))
    ]


def sentences(folder: Path, longest: int, *, trust_remote_code: bool) -> list[list[int]]:
    """Return the built-in sentences as ids.

    Args:
        folder: of the tokenizer.
        longest: tokens of one, at most.
        trust_remote_code: whether the tokenizer may run code of its own.
    """
    from surgery.data.encode import load_processor

    processor = load_processor(folder, trust_remote_code=trust_remote_code)
    tokenizer: Any = getattr(processor, "tokenizer", processor)
    return [tokenizer(sentence)["input_ids"][:longest] for sentence in SENTENCES]
