"""Generate greedily with the parts of a model whose graphs have static shapes.

The prompt goes through the prefill graphs in chunks, of which the last is filled up; then one token
at a time goes through the decode graphs. Whatever runs a graph is an `Engine`. numpy alone.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final

from surgery.runtime.kv_part import CachedPart, Engine
from surgery.runtime.manifest import PartRecord
from surgery.runtime.prompt_chunk import Features, Phase, PromptChunk, prompt_chunks

TOKENIZER: Final = "tokenizer"
"""The part that encodes a prompt."""
LORA: Final = "lora"
"""The part that holds what goes into inputs for LoRA."""
LORA_FILE: Final = "lora.safetensors"
"""Its file."""


class DecodeLoop:
    """The parts of one path, and what they have seen so far.

    Args:
        engine: runs their graphs.
        parts: of one path in their order, from the embeddings to the head.
        lora: what goes into inputs for LoRA; zeros where it has nothing.
    """

    def __init__(
        self, engine: Engine, parts: Mapping[str, PartRecord], lora: Mapping[str, Any]
    ) -> None:
        self._parts = [CachedPart(engine, name, part, dict(lora)) for name, part in parts.items()]
        self._lengths = self._parts[0].lengths()
        self.context = min(part.context for part in self._parts if part.context)
        self.seen = 0

    def generate(
        self,
        prompt: Sequence[int],
        tokens: int,
        ends: Collection[int],
        features: Features | None = None,
    ) -> list[int]:
        """Continue a prompt with the likeliest token each time.

        Args:
            prompt: ids, at least one.
            tokens: to make, at most.
            ends: ids after which nothing comes.
            features: of the prompt's images.

        Returns:
            The new ids, with the end if there is one.
        """
        logits = self.read(prompt, features)
        made = [int(logits.argmax())]
        while len(made) < tokens and made[-1] not in ends:
            made.append(int(self.step("decode", made[-1:]).argmax()))
        return made

    def read(self, prompt: Sequence[int], features: Features | None = None) -> Any:
        """Take in a prompt; token by token where there are no graphs for more at once.

        Args:
            prompt: ids, at least one.
            features: of its images.

        Returns:
            Logits (V) of the token after it.
        """
        return self.step("prefill" if "prefill" in self._lengths else "decode", prompt, features)

    def step(self, phase: Phase, ids: Sequence[int], features: Features | None = None) -> Any:
        """Take in some tokens.

        Args:
            phase: which graphs.
            ids: at least one.
            features: of the images among them.

        Returns:
            Logits (V) of the token after them.
        """
        for chunk in prompt_chunks(ids, phase, self._lengths[phase], self.seen, features):
            output = self._through(chunk)
            self.seen += chunk.count
        return output.known["logits"][0, -1]

    def _through(self, chunk: PromptChunk) -> PromptChunk:
        for part in self._parts:
            chunk = part.take(chunk)
        return chunk


def parts_on_path(names: Iterable[str], parts: Mapping[str, PartRecord]) -> dict[str, PartRecord]:
    """The parts of a path that chunks go through, in its order.

    Args:
        names: of the path.
        parts: of the export.
    """
    phases = {
        name: {file.graph.phase for file in parts[name].files if file.graph} for name in names
    }
    return {name: parts[name] for name in names if phases[name] - {"image"}}
