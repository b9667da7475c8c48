"""One part of an export on one path: its graphs of static shape, and the cache between its steps.

numpy alone. Shapes: T tokens of a step, W positions of the cache, K key heads, C head width.
"""

from functools import lru_cache
from typing import Any, Final, Protocol

import numpy as np

from surgery.runtime.causal_mask import causal_mask
from surgery.runtime.manifest import GraphRecord, PartRecord, ValueRecord
from surgery.runtime.prompt_chunk import Arrays, Phase, PromptChunk

_OF_THE_CACHE: Final = ("new_key", "new_value")
_PHASES: Final[tuple[Phase, ...]] = ("prefill", "decode")


class Engine(Protocol):
    """Runs graphs."""

    def run(self, part: str, file: str, feeds: Arrays) -> Arrays:
        """Return the outputs of a graph.

        Args:
            part: name of its folder.
            file: name in that.
            feeds: an array for each of its inputs.
        """


class CachedPart:
    """A part that takes one chunk after another.

    Args:
        engine: runs its graphs.
        name: of its folder.
        part: what the manifest says of it.
        lora: what goes into inputs for LoRA; zeros where it has nothing.
    """

    def __init__(self, engine: Engine, name: str, part: PartRecord, lora: Arrays) -> None:
        self._engine, self._name, self._lora = engine, name, lora
        self._graphs = {
            file.graph.phase: (file.name, file.graph) for file in part.files if file.graph
        }
        self._cache: tuple[Any, Any] | None = None

    def lengths(self) -> dict[Phase, int]:
        """Tokens of a step in each phase that it has graphs of its own for."""
        phases = (phase for phase in _PHASES if phase in self._graphs)
        return {phase: self._graphs[phase][1].tokens for phase in phases}

    @property
    def context(self) -> int | None:
        """W; None where it remembers nothing."""
        return next((graph.window for _, graph in self._graphs.values() if graph.window), None)

    def take(self, chunk: PromptChunk) -> PromptChunk:
        """Compute what this part gives for a chunk, and remember its keys and values."""
        file, record = self._graphs.get(chunk.phase) or self._graphs["both"]
        feeds = {value.name: self._feed(value, record, chunk) for value in record.inputs}
        found = self._engine.run(self._name, file, feeds)
        if record.window:
            self._remember(chunk, *(found.pop(name) for name in _OF_THE_CACHE))
            found = {"hidden": found["new_hidden"]}
        if "features" in chunk.known and "ids" in feeds:
            found["hidden"][0, chunk.known["is_image"]] = chunk.known["features"]
        return chunk.knowing(found)

    def _feed(self, value: ValueRecord, record: GraphRecord, chunk: PromptChunk) -> Any:
        if value.source == "mask":
            return _mask(record.tokens, record.window, chunk.start, record.sliding)
        if value.source == "lora":
            found = self._lora.get(value.name)
            return _zeros(value.shape) if found is None else found
        if value.source in ("past_key", "past_value"):
            self._cache = self._cache or _empty(record)
            return self._cache[value.source == "past_value"]
        if record.phase == "both":  # the head, which looks at one token alone
            return chunk.known["hidden"][:, chunk.count - 1 : chunk.count]
        return chunk.known[value.source]

    def _remember(self, chunk: PromptChunk, key: Any, value: Any) -> None:
        """Put the keys and values of true tokens (1, K, T, C) into the cache (1, K, W, C)."""
        assert self._cache is not None
        for cached, new in zip(self._cache, (key, value), strict=True):
            cached[..., chunk.start : chunk.start + chunk.count, :] = new[..., : chunk.count, :]


@lru_cache(maxsize=4)
def _mask(tokens: int, window: int, start: int, sliding: int | None) -> Any:
    """The mask of a step, which blocks of one kind share."""
    return causal_mask(tokens, window, start, sliding)


@lru_cache(maxsize=64)
def _zeros(shape: tuple[int, ...]) -> Any:
    return np.zeros(shape, np.float32)


def _empty(record: GraphRecord) -> tuple[Any, Any]:
    shapes = {value.source: value.shape for value in record.inputs}
    return np.zeros(shapes["past_key"], np.float32), np.zeros(shapes["past_value"], np.float32)
