"""Generate greedily with the parts of a model whose graphs have static shapes.

The prompt goes through the prefill graphs in pieces, of which the last is filled up; then one token
at a time goes through the decode graphs. Whatever runs a graph is an `Engine`. numpy alone.

Shapes: T tokens of a step, W places of the cache, K heads of keys, C width of a head, V words.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal, Protocol

import numpy as np

from surgery.causal_mask import causal_mask
from surgery.manifest import GraphRecord, PartRecord, ValueRecord

TOKENIZER: Final = "tokenizer"
"""The part that encodes a prompt."""
LORA: Final = "lora"
"""The part that holds what goes into inputs for LoRA."""
LORA_FILE: Final = "lora.safetensors"
"""Its file."""
Arrays = dict[str, Any]
Phase = Literal["prefill", "decode"]


class Engine(Protocol):
    """Runs graphs."""

    def run(self, part: str, file: str, feeds: Arrays) -> Arrays:
        """Return the outputs of a graph.

        Args:
            part: name of its folder.
            file: name in that.
            feeds: an array for each of its inputs.
        """


@dataclass(frozen=True)
class _Graph:
    part: str
    file: str
    record: GraphRecord


class DecodeLoop:
    """The parts of one path, and what it has seen so far.

    Args:
        engine: runs their graphs.
        parts: of one path in their order, from the embeddings to the head; others are passed over.
        lora: what goes into inputs for LoRA; zeros where it has nothing.
    """

    def __init__(
        self, engine: Engine, parts: Mapping[str, PartRecord], lora: Mapping[str, Any]
    ) -> None:
        self._engine = engine
        self._lora = dict(lora)
        self._graphs = [
            _Graph(name, file.name, file.graph)
            for name, part in parts.items()
            for file in part.files
            if file.graph
        ]
        blocks = [graph.record for graph in self._graphs if graph.record.window]
        self.context = min(record.window for record in blocks)
        self.prefill = max(record.tokens for record in blocks)
        self.seen = 0
        self._caches: dict[str, tuple[Any, Any]] = {}
        self._zeros = cache(lambda shape: np.zeros(shape, np.float32))

    def generate(self, prompt: Sequence[int], tokens: int, ends: Collection[int]) -> list[int]:
        """Continue a prompt with the likeliest token each time.

        Args:
            prompt: ids, at least one.
            tokens: to make, at most.
            ends: ids after which nothing comes.

        Returns:
            The new ids, with the end if there is one.
        """
        logits = self.read(prompt)
        made = [int(logits.argmax())]
        while len(made) < tokens and made[-1] not in ends:
            made.append(int(self.step("decode", made[-1:]).argmax()))
        return made

    def read(self, prompt: Sequence[int]) -> Any:
        """Take in a prompt, piece by piece.

        Args:
            prompt: ids, at least one.

        Returns:
            Logits (V) of the token after it.
        """
        pieces = (prompt[i : i + self.prefill] for i in range(0, len(prompt), self.prefill))
        for piece in pieces:
            logits = self.step("prefill", piece)
        return logits

    def step(self, phase: Phase, ids: Sequence[int]) -> Any:
        """Take in some tokens.

        Args:
            phase: which graphs.
            ids: as many as these take, or fewer.

        Returns:
            Logits (V) of the token after them.
        """
        graphs = [graph for graph in self._graphs if graph.record.phase in (phase, "both")]
        known = _start(ids, graphs[0].record.tokens, self.seen)
        for graph in graphs:
            if graph.record.phase == "both":  # the head, which looks at one token alone
                known["hidden"] = known["hidden"][:, len(ids) - 1 : len(ids)]
            feeds = {value.name: self._feed(value, graph, known) for value in graph.record.inputs}
            found = self._engine.run(graph.part, graph.file, feeds)
            known |= found
            if graph.record.window:
                known["hidden"] = found["new_hidden"]
                self._remember(graph, found["new_key"], found["new_value"], len(ids))
        self.seen += len(ids)
        return known["logits"][0, -1]

    def _feed(self, value: ValueRecord, graph: _Graph, known: Arrays) -> Any:
        if value.source == "mask":
            return self._mask(graph.record, known)
        if value.source == "lora":
            found = self._lora.get(value.name)
            return self._zeros(value.shape) if found is None else found
        if value.source in ("past_key", "past_value"):
            cached = self._caches.setdefault(graph.part, _empty(graph.record))
            return cached[value.source == "past_value"]
        return known[value.source]

    def _mask(self, record: GraphRecord, known: Arrays) -> Any:
        """The mask of a step, which blocks of one kind share."""
        name = f"mask {record.sliding}"
        if name not in known:
            known[name] = causal_mask(record.tokens, record.window, self.seen, record.sliding)
        return known[name]

    def _remember(self, graph: _Graph, key: Any, value: Any, count: int) -> None:
        """Put the keys and values of true tokens (1, K, T, C) into the cache (1, K, W, C)."""
        for cached, new in zip(self._caches[graph.part], (key, value), strict=True):
            cached[..., self.seen : self.seen + count, :] = new[..., :count, :]


def _start(ids: Sequence[int], tokens: int, seen: int) -> Arrays:
    """Ids and positions of a step, filled up to its length."""
    filled = np.zeros((1, tokens), np.int64)
    filled[0, : len(ids)] = ids
    places = np.minimum(np.arange(tokens), len(ids) - 1)  # no place is outside of a learned table
    return {"ids": filled, "positions": (seen + places)[None].astype(np.int64)}


def _empty(record: GraphRecord) -> tuple[Any, Any]:
    shapes = {value.source: value.shape for value in record.inputs}
    return np.zeros(shapes["past_key"], np.float32), np.zeros(shapes["past_value"], np.float32)


def parts_of(names: Iterable[str], parts: Mapping[str, PartRecord]) -> dict[str, PartRecord]:
    """The parts of a path in its order."""
    return {name: parts[name] for name in names}
