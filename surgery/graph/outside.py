"""What a decoder does before its first block and behind its last, as graphs without numbers.

Its own code runs around blocks that only note what they are given, so no family's embeddings,
angles of positions or final norm are written again. Imports torch at the top: only what makes
graphs reaches it.

Shapes: T tokens of the step, D width of the hidden state, V words.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import nn

from surgery.graph.call import ANSWERS, Call, named_call
from surgery.graph.norm import rewrite_norms
from surgery.graph.onnx_graph import to_onnx
from surgery.graph.refusal import no_parts, reason_of
from surgery.graph.step import Feeds
from surgery.graph.tracer import model_around
from surgery.graph.weights import read_base, settle
from surgery.locate import text_config
from surgery.meta import meta_model
from surgery.plan import Plan
from surgery.stored import read_stored

if TYPE_CHECKING:
    import onnx_ir as ir

_PROBED: Final = 8  # tokens, which tell one kind of angles from another


class Outside:
    """A model whose blocks do nothing.

    Args:
        plan: of a model on disk.
        trust_remote_code: whether the model may run code of its own.

    Raises:
        SurgeryError: M104 and M105 where the model can't be built, A612 where its decoder does more
            between blocks than to pass the hidden state on.
    """

    def __init__(self, plan: Plan, *, trust_remote_code: bool = False) -> None:
        assert plan.files is not None
        self._plan, self._files = plan, plan.files
        path = plan.anatomy.blocks_path
        self._model: Any = meta_model(plan.files, trust_remote_code).float().eval()
        self._model.requires_grad_(False)
        self._blocks = _idle(self._model.get_submodule(path))
        self._model.set_submodule(path, self._blocks)
        self._decoder = model_around(self._model, path)
        settle(self._decoder, self._model.modules())
        self._originals = dict(self._model.named_modules())
        rewrite_norms(self._model)
        self._answer = self._find_answer()

    def angles(self, used: Mapping[int, Sequence[str]]) -> dict[int, dict[str, str]]:
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
        calls = self._calls(ids, positions)
        known: dict[str, torch.Tensor] = {"positions": positions}
        found: dict[int, dict[str, str]] = {}
        for block, names in used.items():
            given = calls[block].tensors
            missing = next((name for name in names if name not in given), None)
            if missing:
                raise no_parts(self._plan, f"block {block} takes `{missing}`, which nothing gives")
            found[block] = {name: _named(name, block, given[name], known) for name in names}
        return found

    def before(self, tokens: int, angles: Mapping[int, Mapping[str, str]]) -> "list[ir.Model]":
        """Return the graphs of what comes before the first block.

        Args:
            tokens: T.
            angles: from `angles`.

        Returns:
            From `ids` (1, T) to `hidden` (1, T, D), perhaps with `positions` (1, T) as an input;
            then from `positions` to all angles, where there are any.

        Raises:
            SurgeryError: A612 where that isn't enough for this decoder.
        """
        sources = {
            output: (block, name)
            for block, named in angles.items()
            for name, output in named.items()
            if output != "positions"
        }
        embeddings = self._exported(partial(self._before, {"hidden": (0, "hidden")}), tokens)
        graphs = [embeddings]
        if sources:
            graphs.append(self._exported(partial(self._before, sources), tokens))
            if "ids" in _inputs(graphs[1]):
                raise no_parts(self._plan, "its blocks are given more of the words than the hidden")
        if not any("positions" in _inputs(graph) for graph in graphs):
            raise no_parts(self._plan, "it takes no positions from outside")
        return graphs

    def head(self) -> "ir.Model":
        """Return the graph from the last `hidden` (1, 1, D) to `logits` (1, 1, V).

        Raises:
            SurgeryError: A612 where there is none.
        """
        width: int = text_config(self._model).hidden_size
        return self._to_onnx(self._behind, {"hidden": torch.zeros(1, 1, width)})

    def numbers(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return real parameters as the graphs compute with them.

        Args:
            names: full ones in the base.

        Raises:
            SurgeryError: X112 where one isn't on disk.
        """
        stored = read_stored(self._files, self._plan.anatomy)
        found: dict[str, torch.Tensor] = {}
        for place in dict.fromkeys(name.rpartition(".")[0] for name in names):
            part = _bare(self._originals[place])
            for name, _ in self._originals[place].named_parameters(recurse=False):
                value = read_base(f"{place}.{name}", stored).float()
                part.register_parameter(name, nn.Parameter(value, requires_grad=False))
            holder = nn.ModuleDict({"part": part})
            rewrite_norms(holder)
            read = holder["part"].named_parameters()
            found |= {f"{place}.{name}": parameter.detach() for name, parameter in read}
        return found

    def _calls(self, ids: torch.Tensor, positions: torch.Tensor) -> list[Call]:
        """Let the decoder begin a step, and return how it calls each of its blocks.

        A mask of four dimensions is taken by transformers as it is, so that none is made.
        """
        seen: list[Call] = []
        for block in self._blocks:
            block.forward = partial(_note, seen, block, self._answer)
        tokens = ids.shape[1]
        mask = torch.zeros(1, 1, tokens, tokens)
        self._decoder(input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=False)
        return seen

    def _before(self, sources: Mapping[str, tuple[int, str]], feeds: Feeds) -> Feeds:
        calls = self._calls(feeds["ids"], feeds["positions"])
        return {output: calls[block].tensors[name] for output, (block, name) in sources.items()}

    def _behind(self, feeds: Feeds) -> Feeds:
        hidden = feeds["hidden"]
        for block in self._blocks:
            block.forward = partial(_always, self._answer(hidden))
        mask = torch.zeros(1, 1, 1, 1)
        given = {"inputs_embeds": torch.zeros_like(hidden), "attention_mask": mask}
        return {"logits": self._model(**given, use_cache=False).logits}

    def _find_answer(self) -> Callable[[torch.Tensor], Any]:
        ids = torch.zeros(1, 2, dtype=torch.long)
        why = "it changes the hidden state between its blocks"
        for answer in ANSWERS:
            self._answer = answer
            try:
                with torch.no_grad():
                    passed = [call.tensors["hidden"] for call in self._calls(ids, ids)]
            except Exception as error:  # each family refuses in its own way
                why = reason_of(error)
                continue
            if len(passed) == len(self._blocks) and all(h is passed[0] for h in passed):
                return answer
        raise no_parts(self._plan, why)

    def _exported(self, compute: Callable[[Feeds], Feeds], tokens: int) -> "ir.Model":
        ids = torch.zeros(1, tokens, dtype=torch.long)
        return self._to_onnx(compute, {"ids": ids, "positions": torch.arange(tokens)[None]})

    def _to_onnx(self, compute: Callable[[Feeds], Feeds], feeds: Feeds) -> "ir.Model":
        try:
            return to_onnx(_Whole(self._model, compute), feeds, "", numbers=False)
        except Exception as error:  # torch.export has many ways to say no
            raise no_parts(self._plan, reason_of(error)) from error


class _Whole(nn.Module):
    """Holds the model where `to_onnx` looks for names, and computes something with it."""

    def __init__(self, model: nn.Module, compute: Callable[[Feeds], Feeds]) -> None:
        super().__init__()
        self.plain = nn.Module()
        self.plain.block = model
        self._compute = compute

    def forward(self, feeds: Feeds) -> Feeds:
        return self._compute(feeds)


def _idle(blocks: Any) -> nn.ModuleList:
    """Blocks of the same classes and settings, with nothing in them."""
    return nn.ModuleList(_bare(block) for block in blocks)


def _bare(module: nn.Module) -> Any:
    bare = copy.copy(module)
    bare.__dict__.update(_parameters={}, _modules={}, _buffers=dict(module._buffers))
    return bare


def _note(seen: list[Call], block: nn.Module, answer: Any, *args: Any, **kwargs: Any) -> Any:
    call = named_call((args, kwargs), block)
    seen.append(call)
    return answer(call.tensors["hidden"])


def _always(answer: Any, *args: Any, **kwargs: Any) -> Any:
    return answer


def _named(name: str, block: int, value: torch.Tensor, known: dict[str, torch.Tensor]) -> str:
    """The output that an input is: one that is known, or a new one."""
    same = (other for other, held in known.items() if _is_same(held, value))
    output = next(same, None) or (f"{name}@{block}" if name in known else name)
    known.setdefault(output, value)
    return output


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _inputs(graph: "ir.Model") -> Iterator[str | None]:
    return (value.name for value in graph.graph.inputs)
