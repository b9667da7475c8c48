"""What a decoder does before its first block and behind its last, as graphs without weights.

Its own code runs around blocks that only note what they are given, so no family's embeddings,
rotary embeddings or final norm are written again. Imports torch at the top: only what makes
graphs reaches it.

Shapes: T tokens of the step, D width of the hidden state, V words.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import torch

from surgery.graphs.block.step import Feeds
from surgery.graphs.block.trace_errors import no_parts
from surgery.graphs.model_shell import ModelShell
from surgery.model.structure.block_finder import text_config

if TYPE_CHECKING:
    import onnx_ir as ir

_PROBED: Final = 8  # tokens, which tell one kind of rotary embeddings from another


class EmbeddingsAndHead:
    """Embeddings, rotary embeddings, final norm and head of a model.

    Args:
        shell: the model.
    """

    def __init__(self, shell: ModelShell) -> None:
        self._shell, self._plan = shell, shell.plan

    def rotary_inputs(self, used: Mapping[int, Sequence[str]]) -> dict[int, dict[str, str]]:
        """Say which output of the graph of positions each input of a block takes.

        Args:
            used: for one block of each form, the inputs of its graph that are neither hidden state,
                mask, cache nor LoRA, such as `cos`.

        Returns:
            For each of those blocks, input to output; `positions` for an input that is these
            themselves. An input that two forms have in common is one output.

        Raises:
            SurgeryError: A612 for an input that the decoder doesn't give.
        """
        ids = torch.zeros(1, _PROBED, dtype=torch.long)
        positions = torch.arange(_PROBED)[None]
        calls = self._shell.calls(positions, input_ids=ids)
        known: dict[str, torch.Tensor] = {"positions": positions}
        found: dict[int, dict[str, str]] = {}
        for block, names in used.items():
            given = calls[block].tensors
            missing = next((name for name in names if name not in given), None)
            if missing:
                raise no_parts(self._plan, f"block {block} takes `{missing}`, which nothing gives")
            found[block] = {name: _named(name, block, given[name], known) for name in names}
        return found

    def before(
        self, tokens: int, rotary_inputs: Mapping[int, Mapping[str, str]]
    ) -> "list[ir.Model]":
        """Return the graphs of what comes before the first block.

        Args:
            tokens: T.
            rotary_inputs: from `angles`.

        Returns:
            From `ids` (1, T) to `hidden` (1, T, D), perhaps with `positions` (1, T) as an input;
            then from `positions` to all rotary embeddings, where there are any.

        Raises:
            SurgeryError: A612 where that isn't enough for this decoder.
        """
        sources = {
            output: (block, name)
            for block, named in rotary_inputs.items()
            for name, output in named.items()
            if output != "positions"
        }
        embeddings = self._exported(partial(self._before, {"hidden": (0, "hidden")}), tokens)
        graphs = [embeddings]
        if sources:
            graphs.append(self._exported(partial(self._before, sources), tokens))
            if "ids" in _inputs(graphs[1]):
                raise no_parts(
                    self._plan, "its blocks take more of the token ids than the hidden state"
                )
        if not any("positions" in _inputs(graph) for graph in graphs):
            raise no_parts(self._plan, "it takes no positions from outside")
        return graphs

    def head(self) -> "ir.Model":
        """Return the graph from the last `hidden` (1, 1, D) to `logits` (1, 1, V).

        Raises:
            SurgeryError: A612 where there is none.
        """
        width: int = text_config(self._shell.model).hidden_size
        return self._shell.to_onnx(self._after, {"hidden": torch.zeros(1, 1, width)})

    def _before(self, sources: Mapping[str, tuple[int, str]], feeds: Feeds) -> Feeds:
        calls = self._shell.calls(feeds["positions"], input_ids=feeds["ids"])
        return {output: calls[block].tensors[name] for output, (block, name) in sources.items()}

    def _after(self, feeds: Feeds) -> Feeds:
        return {"logits": self._shell.logits(feeds["hidden"])}

    def _exported(self, compute: Callable[[Feeds], Feeds], tokens: int) -> "ir.Model":
        ids = torch.zeros(1, tokens, dtype=torch.long)
        return self._shell.to_onnx(compute, {"ids": ids, "positions": torch.arange(tokens)[None]})


def _named(name: str, block: int, value: torch.Tensor, known: dict[str, torch.Tensor]) -> str:
    """The output that an input is: one that is known, or a new one."""
    same = (other for other, tensor in known.items() if _is_same(tensor, value))
    output = next(same, None) or (f"{name}@{block}" if name in known else name)
    known.setdefault(output, value)
    return output


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _inputs(graph: "ir.Model") -> Iterator[str | None]:
    return (value.name for value in graph.graph.inputs)
