"""A complete model whose blocks do nothing, and graphs of what its own code computes around them.

Imports torch at the top: only what makes graphs reaches it.

Shapes: T tokens of the step, D width of the hidden state.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from surgery.graphs.block.call import ANSWERS, Call, named_call
from surgery.graphs.block.step import Feeds
from surgery.graphs.block.trace_errors import no_parts, reason_of
from surgery.graphs.block.tracer import model_around
from surgery.graphs.block.weights import read_base, read_pairs, settle
from surgery.graphs.rms_norm import rewrite_norms
from surgery.graphs.torch_export import to_onnx
from surgery.model.meta_device import meta_model
from surgery.model.names.disk_names import read_disk_names
from surgery.plan.planner import Plan

if TYPE_CHECKING:
    import onnx_ir as ir


class ModelWithoutWeights:
    """A model whose parameters are zeros that take no memory, and where the real ones are.

    Args:
        plan: of a model on disk.
        trust_remote_code: whether the model may run code of its own.

    Attributes:
        plan: the same.
        model: of transformers.

    Raises:
        SurgeryError: M104 and M105 where the model can't be built.
    """

    def __init__(self, plan: Plan, *, trust_remote_code: bool = False) -> None:
        assert plan.files is not None
        self.plan = plan
        self._stored = cache(partial(read_disk_names, plan.files, plan.anatomy))
        self.model: Any = meta_model(plan.files, trust_remote_code).float().eval()
        self.model.requires_grad_(False)
        self._prepare()
        _settle(self.model)
        self._originals = dict(self.model.named_modules())
        rewrite_norms(self.model)

    def _prepare(self) -> None:
        """Change the model while it is on the meta device."""

    def to_onnx(
        self,
        compute: Callable[[Feeds], Feeds],
        feeds: Feeds,
        dynamic: Mapping[str, Any] | None = None,
    ) -> "ir.Model":
        """Return a graph without weights; its parameters have their full names in the base.

        Args:
            compute: with this model.
            feeds: one of each input.
            dynamic: for each input its axes that are dynamic; None for a graph of static shape.

        Raises:
            SurgeryError: A612 where torch can't export it.
        """
        try:
            step = _Computed(self.model, compute)
            return to_onnx(step, feeds, "", with_values=False, dynamic=dynamic)
        except Exception as error:  # torch.export has many ways to say no
            raise no_parts(self.plan, reason_of(error)) from error

    def read_weights(
        self, names: Sequence[str], adapter: Path | None = None
    ) -> dict[str, torch.Tensor]:
        """Return real parameters as the graphs compute with them.

        Args:
            names: full ones in the base.
            adapter: an adapter folder, whose copies win over the base.

        Raises:
            SurgeryError: X112 where one isn't on disk.
        """
        found: dict[str, torch.Tensor] = {}
        for module_path in dict.fromkeys(name.rpartition(".")[0] for name in names):
            part = _emptied(self._originals[module_path])
            own = [name for name, _ in self._originals[module_path].named_parameters(recurse=False)]
            for name, value in self.tensors(module_path, own, adapter).items():
                part.register_parameter(name, nn.Parameter(value.float(), requires_grad=False))
            holder = nn.ModuleDict({"part": part})
            rewrite_norms(holder)
            read = holder["part"].named_parameters()
            found |= {f"{module_path}.{name}": parameter.detach() for name, parameter in read}
        return found

    def tensors(
        self, module_path: str, names: Sequence[str], adapter: Path | None = None
    ) -> dict[str, torch.Tensor]:
        """Return tensors of a module as they are stored.

        Args:
            module_path: full module name.
            names: in the module.
            adapter: as for `read_weights`.

        Raises:
            SurgeryError: X112 where one isn't on disk.
        """
        changed = read_pairs(adapter, module_path) if adapter else {}
        full = {name: f"{module_path}.{name}" for name in names}
        return {
            name: changed[path] if path in changed else read_base(path, self._stored())
            for name, path in full.items()
        }


class ModelShell(ModelWithoutWeights):
    """A model without weights, with blocks that only note what they are given.

    Args:
        plan: of a model on disk.
        trust_remote_code: whether the model may run code of its own.

    Attributes:
        decoder: the model in it that calls the blocks.

    Raises:
        SurgeryError: M104 and M105 where the model can't be built, A612 where its decoder does more
            between blocks than to pass the hidden state on.
    """

    def __init__(self, plan: Plan, *, trust_remote_code: bool = False) -> None:
        super().__init__(plan, trust_remote_code=trust_remote_code)
        self._answer = self._find_answer()

    def _prepare(self) -> None:
        path = self.plan.anatomy.blocks_path
        self._blocks = _idle(self.model.get_submodule(path))
        self.model.set_submodule(path, self._blocks)
        self.decoder = model_around(self.model, path)

    def calls(self, positions: torch.Tensor, **given: torch.Tensor) -> list[Call]:
        """Let the decoder begin a step, and return how it calls each of its blocks.

        A mask of four dimensions is taken by transformers as it is, so that none is made.

        Args:
            positions: (1, T).
            given: `input_ids` (1, T), or `inputs_embeds` (1, T, D).
        """
        tokens = positions.shape[1]
        mask = torch.zeros(1, 1, tokens, tokens)
        given |= {"position_ids": positions, "attention_mask": mask}
        return self.noted(lambda: self.decoder(**given, use_cache=False))

    def noted(self, run: Callable[[], Any]) -> list[Call]:
        """Return how blocks are called while something runs.

        Args:
            run: with this model.
        """
        seen: list[Call] = []
        for block in self._blocks:
            block.forward = partial(_note, seen, block, self._answer)
        run()
        return seen

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return what the model makes of what its last block gives.

        Args:
            hidden: (1, 1, D).
        """
        for block in self._blocks:
            block.forward = partial(_always, self._answer(hidden))
        mask = torch.zeros(1, 1, 1, 1)
        given = {"inputs_embeds": torch.zeros_like(hidden), "attention_mask": mask}
        found: torch.Tensor = self.model(**given, use_cache=False).logits
        return found

    def _find_answer(self) -> Callable[[torch.Tensor], Any]:
        ids = torch.zeros(1, 2, dtype=torch.long)
        why = "it changes the hidden state between its blocks"
        for answer in ANSWERS:
            self._answer = answer
            try:
                with torch.no_grad():
                    passed = [call.tensors["hidden"] for call in self.calls(ids, input_ids=ids)]
            except Exception as error:  # each family refuses in its own way
                why = reason_of(error)
                continue
            if len(passed) == len(self._blocks) and all(h is passed[0] for h in passed):
                return answer
        raise no_parts(self.plan, why)


class _Computed(nn.Module):
    """Holds the model where `to_onnx` looks for names, and computes something with it."""

    def __init__(self, model: nn.Module, compute: Callable[[Feeds], Feeds]) -> None:
        super().__init__()
        self.plain = nn.Module()
        self.plain.block = model
        self._compute = compute

    def forward(self, feeds: Feeds) -> Feeds:
        return self._compute(feeds)


def _settle(model: nn.Module) -> None:
    """Settle each module by the innermost transformers model that it is in, which knows it."""
    from transformers import PreTrainedModel

    owners: dict[str, Any] = {"": model}
    for name, module in model.named_modules():
        outer = owners[name.rpartition(".")[0]]
        owners[name] = module if isinstance(module, PreTrainedModel) else outer
        settle(owners[name], [module])


def _idle(blocks: Any) -> nn.ModuleList:
    """Blocks of the same classes and settings, with nothing in them."""
    return nn.ModuleList(_emptied(block) for block in blocks)


def _emptied(module: nn.Module) -> Any:
    emptied = copy.copy(module)
    emptied.__dict__.update(_parameters={}, _modules={}, _buffers=dict(module._buffers))
    return emptied


def _note(seen: list[Call], block: nn.Module, answer: Any, *args: Any, **kwargs: Any) -> Any:
    call = named_call((args, kwargs), block)
    seen.append(call)
    return answer(call.tensors["hidden"])


def _always(answer: Any, *args: Any, **kwargs: Any) -> Any:
    return answer
