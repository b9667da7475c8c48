"""Show the graphs of an export what they will be given, one part after another.

Prompts go through a part in float on every path that it is in; what comes out waits on disk for the
next part. So no more than one part is ever in memory, and a stopped export goes on where it was.
The vision part comes first: what it makes of images goes along the multimodal path with the
prompts, of which the text path has the words alone.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np

from surgery.npu.qualcomm.arrays import read_arrays, write_arrays
from surgery.runtime.kv_part import CachedPart, Engine
from surgery.runtime.manifest import PartRecord, PathName
from surgery.runtime.prompt_chunk import Arrays, Features, Phase, PromptChunk, prompt_chunks
from surgery.runtime.vision_part import ImagePart, is_vision_part

DECODED: Final = 8
"""Tokens at the end of each prompt that go through the graphs of one token."""
_PROBE_BYTES: Final = 16
"""Prompts whose tiles calibrate the vision part; SigLIP-so400m takes seconds for each tile."""
_POSITION: Final = "piece"
_TILES: Final = "tiles"


@dataclass(frozen=True)
class CalibrationSample:
    """What a graph was given once.

    Args:
        path: along which.
        prompt: its number.
        file: of the graph.
        feeds: an array for each of its inputs.
    """

    path: PathName
    prompt: int
    file: str
    feeds: Arrays


class Calibration:
    """Prompts on their way through the parts.

    Args:
        folder: where they wait.
        paths: the parts of each path that they go through, in its order; not the vision part.
        lora: for each path what goes into inputs for LoRA.
    """

    def __init__(
        self,
        folder: Path,
        paths: Mapping[PathName, Sequence[str]],
        lora: Mapping[PathName, Arrays],
    ) -> None:
        self._folder, self._paths, self._lora = folder, paths, lora

    def run_vision(
        self, engine: Engine, name: str, part: PartRecord, number: int, pixels: Any
    ) -> Features:
        """Let the vision part look at the images of a prompt, and note what it was given.

        Args:
            engine: runs its float graph.
            name: of the part.
            part: its graph.
            number: of the prompt.
            pixels: (tiles, C, H, W), of all its images.
        """
        recorder = _RecordingEngine(engine)
        features = ImagePart(recorder, name, part).features(pixels)
        folder = _emptied(self._tiles(name) / f"{number:04}")
        for index, (_, feeds) in enumerate(recorder.given):
            write_arrays(folder / f"{index:06}.npz", feeds)
        return features

    def begin(
        self,
        prompts: Iterable[tuple[Sequence[int], Features | None]],
        lengths: Mapping[Phase, int],
    ) -> None:
        """Let prompts wait before the first part of each path.

        Args:
            prompts: ids of each, and what its images became; along text it has none.
            lengths: of a step in each phase that there are graphs for.
        """
        for number, (ids, features) in enumerate(prompts):
            for path in self._paths:
                own = _text_alone(ids, features) if path == "text" else (ids, features)
                self._store(self._folder_of(path, 0), number, _split(*own, lengths))

    def through(self, engine: Engine, name: str, part: PartRecord) -> list[CalibrationSample]:
        """Let all prompts go through a part, on each of its paths; the vision part has already run.

        Args:
            engine: runs its float graphs.
            name: of the part, before which they wait.
            part: its graphs.

        Returns:
            For each graph, prompt and path what the graph was given first and last, and first of
            what has images.
        """
        if is_vision_part(part):
            return list(self._vision_samples(name, part))
        samples: list[CalibrationSample] = []
        for path, position in self._positions(name):
            for number, stored in enumerate(self._prompts(path, position)):
                recorder = _RecordingEngine(engine)
                cached = CachedPart(recorder, name, part, self._lora[path])
                processed = _processed(cached, recorder, stored)
                self._store(self._folder_of(path, position + 1), number, processed)
                samples += (CalibrationSample(path, number, *given) for given in recorder.given)
        return samples

    def release(self, name: str) -> None:
        """Forget what waited before a part that need not be gone through again."""
        for path, position in self._positions(name):
            shutil.rmtree(self._folder_of(path, position), ignore_errors=True)
        shutil.rmtree(self._tiles(name), ignore_errors=True)

    def _positions(self, name: str) -> Iterator[tuple[PathName, int]]:
        return ((path, names.index(name)) for path, names in self._paths.items() if name in names)

    def _vision_samples(self, name: str, part: PartRecord) -> Iterator[CalibrationSample]:
        file = next(file.name for file in part.files if file.graph)
        prompts = sorted(self._tiles(name).iterdir())
        for prompt in prompts[: _PROBE_BYTES - 1] + prompts[_PROBE_BYTES - 1 :][-1:]:
            for tile in sorted(prompt.iterdir()):
                yield CalibrationSample(
                    "multimodal", int(prompt.name), file, dict(read_arrays(tile))
                )

    def _tiles(self, name: str) -> Path:
        return self._folder / _TILES / name

    def _folder_of(self, path: PathName, position: int) -> Path:
        return self._folder / path / f"{position:04}"

    def _prompts(self, path: PathName, position: int) -> Iterator[Iterator[PromptChunk]]:
        for prompt in sorted(self._folder_of(path, position).iterdir()):
            yield map(_read, sorted(prompt.iterdir()))

    def _store(self, stored: Path, number: int, found: Iterable[PromptChunk]) -> None:
        folder = _emptied(stored / f"{number:04}")
        for index, chunk in enumerate(found):
            position = np.array([chunk.phase == "prefill", chunk.start, chunk.count])
            write_arrays(folder / f"{index:06}.npz", {**chunk.known, _POSITION: position})


class _RecordingEngine:
    """An engine that notes what each graph is given first, last, and first of what has images."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._given: dict[str, dict[str, Arrays]] = {}
        self.is_image = False

    def run(self, part: str, file: str, feeds: Arrays) -> Arrays:
        given = self._given.setdefault(file, {})
        now = {name: np.array(array) for name, array in feeds.items()}
        given.setdefault("first", now)
        if self.is_image:
            given.setdefault("image", now)
        given.pop("last", None)
        given["last"] = now
        return self._engine.run(part, file, feeds)

    def note(self, chunk: PromptChunk) -> None:
        """Look at whether there are images in what comes now."""
        self.is_image = bool(np.any(chunk.known.get("is_image", False)))

    @property
    def given(self) -> Iterator[tuple[str, Arrays]]:
        for file, given in self._given.items():
            yield from ((file, feeds) for feeds in {id(f): f for f in given.values()}.values())


def _processed(
    cached: CachedPart, recorder: _RecordingEngine, stored: Iterable[PromptChunk]
) -> Iterator[PromptChunk]:
    for chunk in stored:
        recorder.note(chunk)
        yield cached.take(chunk)


def _text_alone(ids: Sequence[int], features: Features | None) -> tuple[Sequence[int], None]:
    """A prompt without the positions of its images."""
    return [token for token in ids if not features or token != features.token], None


def _split(
    ids: Sequence[int], features: Features | None, lengths: Mapping[Phase, int]
) -> Iterator[PromptChunk]:
    """A prompt as it is read, but for its end, which goes token by token as an answer does.

    It is read in two steps at least, since in the first the cache is empty and shows no range.
    """
    if "prefill" not in lengths:
        return prompt_chunks(ids, "decode", 1, 0, features)
    end = max(1, len(ids) - DECODED)
    splits: list[tuple[Phase, int, int]] = [
        ("prefill", 0, end // 2),
        ("prefill", end // 2, end),
        ("decode", end, len(ids)),
    ]
    return chain.from_iterable(
        prompt_chunks(
            ids[start:stop], phase, lengths[phase], start, _remaining(features, ids[:start])
        )
        for phase, start, stop in splits
    )


def _remaining(features: Features | None, ids: Sequence[int]) -> Features | None:
    """What is left of features once some tokens are read."""
    return features and Features(features.token, features.rows[ids.count(features.token) :])


def _read(file: Path) -> PromptChunk:
    known = dict(read_arrays(file))
    is_prefill, start, count = map(int, known.pop(_POSITION))
    return PromptChunk("prefill" if is_prefill else "decode", start, count, known)


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
