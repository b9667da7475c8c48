"""Show the graphs of an export what they will be given, one part after another.

Prompts go through a part in float on every path that it is in; what comes out waits on disk for the
next part. So no more than one part is ever in memory, and a stopped export goes on where it was.
"""

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np

from surgery.cached_part import CachedPart, Engine
from surgery.manifest import PartRecord, PathName
from surgery.piece import Arrays, Features, Phase, Piece, pieces
from surgery.snapdragon.arrays import read_arrays, write_arrays

DECODED: Final = 8
"""Tokens at the end of each prompt that go through the graphs of one token."""
_PLACE: Final = "piece"


@dataclass(frozen=True)
class Shown:
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
        paths: the parts of each path that they go through, in its order.
        lora: for each path what goes into inputs for LoRA.
    """

    def __init__(
        self,
        folder: Path,
        paths: Mapping[PathName, Sequence[str]],
        lora: Mapping[PathName, Arrays],
    ) -> None:
        self._folder, self._paths, self._lora = folder, paths, lora

    def begin(
        self,
        prompts: Sequence[tuple[Sequence[int], Features | None]],
        lengths: Mapping[Phase, int],
    ) -> None:
        """Let prompts wait before the first part of each path.

        Args:
            prompts: ids of each, and what its images became.
            lengths: of a step in each phase that there are graphs for.
        """
        for path in self._paths:
            waiting = self._waiting(path, 0)
            for number, (ids, features) in enumerate(prompts):
                self._keep(waiting, number, _cut(ids, features, lengths))

    def through(self, engine: Engine, name: str, part: PartRecord) -> list[Shown]:
        """Let all prompts go through a part, on each of its paths.

        Args:
            engine: runs its float graphs.
            name: of the part, before which they wait.
            part: its graphs.

        Returns:
            For each graph, prompt and path what the graph was given first and last.
        """
        shown: list[Shown] = []
        for path, place in self._places(name):
            for number, waiting in enumerate(self._prompts(path, place)):
                noted = _Noted(engine)
                cached = CachedPart(noted, name, part, self._lora[path])
                self._keep(self._waiting(path, place + 1), number, map(cached.take, waiting))
                shown += (Shown(path, number, file, feeds) for file, feeds in noted.given)
        return shown

    def passed(self, name: str) -> None:
        """Forget what waited before a part that need not be gone through again."""
        for path, place in self._places(name):
            shutil.rmtree(self._waiting(path, place), ignore_errors=True)

    def _places(self, name: str) -> Iterator[tuple[PathName, int]]:
        return ((path, names.index(name)) for path, names in self._paths.items() if name in names)

    def _waiting(self, path: PathName, place: int) -> Path:
        return self._folder / path / f"{place:04}"

    def _prompts(self, path: PathName, place: int) -> Iterator[Iterator[Piece]]:
        for prompt in sorted(self._waiting(path, place).iterdir()):
            yield map(_read, sorted(prompt.iterdir()))

    def _keep(self, waiting: Path, number: int, found: Iterable[Piece]) -> None:
        folder = waiting / f"{number:04}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for index, piece in enumerate(found):
            place = np.array([piece.phase == "prefill", piece.start, piece.count])
            write_arrays(folder / f"{index:06}.npz", {**piece.known, _PLACE: place})


class _Noted:
    """An engine that notes what each graph is given the first time and the last."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._given: dict[str, list[Arrays]] = {}

    def run(self, part: str, file: str, feeds: Arrays) -> Arrays:
        given = self._given.setdefault(file, [])
        given[1:] = [{name: np.array(array) for name, array in feeds.items()}]
        return self._engine.run(part, file, feeds)

    @property
    def given(self) -> Iterator[tuple[str, Arrays]]:
        return ((file, feeds) for file, given in self._given.items() for feeds in given)


def _cut(
    ids: Sequence[int], features: Features | None, lengths: Mapping[Phase, int]
) -> Iterator[Piece]:
    """A prompt as it is read, but for its end, which goes token by token as an answer does."""
    if "prefill" not in lengths:
        return pieces(ids, "decode", 1, 0, features)
    end = max(1, len(ids) - DECODED)
    read = pieces(ids[:end], "prefill", lengths["prefill"], 0, features)
    return chain(read, pieces(ids[end:], "decode", 1, end))


def _read(file: Path) -> Piece:
    known = dict(read_arrays(file))
    is_prefill, start, count = map(int, known.pop(_PLACE))
    return Piece("prefill" if is_prefill else "decode", start, count, known)
