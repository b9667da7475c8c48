"""A linear module with a second one for image tokens, in three forms that give the same result.

Shapes: B rows, T tokens, D inputs, E outputs, N = B x T.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import nn

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic
from surgery.layers.class_mixin import reduce_mixin, with_mixin
from surgery.layers.peft_wrapper import TrainedPart
from surgery.layers.routing import IMAGE_ONLY, TEXT_ONLY, Routing, routing_of, set_routing

_Linear = Callable[[torch.Tensor], torch.Tensor]


class ExpertMatrix(TrainedPart):
    """Wrapper of a linear module: image tokens go through a trained copy of it.

    Args:
        module_to_save: The base's module, unchanged.
        adapter_name: PEFT's name of the adapter.
    """

    adapter_layer_names = ("expert",)
    saved_prefix = "expert."

    def init_modules(self, adapter_name: str, **kwargs: Any) -> None:
        """Create the container of the copies; see PEFT."""
        self.expert = nn.ModuleDict()

    def update(self, adapter_name: str, **kwargs: Any) -> None:
        """Add the copy for an adapter; see PEFT."""
        super().update(adapter_name)
        if adapter_name not in self.expert:
            self.expert[adapter_name] = copy.deepcopy(self.original_module)
        self.original_module.requires_grad_(False)

    def _forward_wrapped(self, x_BTD: torch.Tensor) -> torch.Tensor:
        routing = routing_of(self._switch)
        if routing is None:
            return self._forward_wrapped_passthrough(x_BTD)
        expert = self.expert[self.active_adapters[0]]
        return FORMS[routing.form](routing, self.original_module, expert, x_BTD)

    def _forward_wrapped_passthrough(self, x_BTD: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.original_module(x_BTD)
        return out

    def _hasattr_wrapped(self, name: str, modules: Any) -> bool:
        return True

    def _getattr_wrapped(self, name: str, modules: Any) -> Any:
        return getattr(modules["original_module"], name)

    def merge_refusal(self) -> Diagnostic:
        """Error of merging it; see `TrainedPart`."""
        return diagnostic("A412.experts")


class TokenwiseMlp:
    """Mixin of an MLP whose matrices have experts: it runs once for each kind of token.

    So the widest tensors of a block, those between its matrices, are never split.
    """

    _first: tuple[ExpertMatrix]

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """Run the MLP; shapes as without experts."""
        forward = super().forward  # type: ignore[misc]
        expert = self._first[0]
        routing = None if expert.disable_adapters else routing_of(expert._switch)
        if routing is None or routing.form == "image":
            return forward(x_BTD)  # type: ignore[no-any-return]
        base = functools.partial(_routed, forward, expert._switch, TEXT_ONLY, routing)
        image = functools.partial(_routed, forward, expert._switch, IMAGE_ONLY, routing)
        return FORMS[routing.form](routing, base, image, x_BTD)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return reduce_mixin(TokenwiseMlp, self)


def add_experts(model: nn.Module, matrices: Sequence[str], adapter_name: str) -> None:
    """Wrap linear modules, and let an MLP with several run once for each kind of token.

    Args:
        model: Changed in place.
        matrices: Full module names.
        adapter_name: PEFT's name of the adapter.
    """
    parents: dict[str, list[ExpertMatrix]] = {}
    for path in matrices:
        parent, _, name = path.rpartition(".")
        wrapped = ExpertMatrix(model.get_submodule(path), adapter_name)
        setattr(model.get_submodule(parent), name, wrapped)
        parents.setdefault(parent, []).append(wrapped)
    for parent, experts in parents.items():
        module: Any = model.get_submodule(parent)
        if len(experts) > 1 and len(inspect.signature(module.forward).parameters) == 1:
            module.__class__ = with_mixin(TokenwiseMlp, type(module))
            module._first = (experts[0],)  # in a tuple, so that it is no submodule


def gather(routing: Routing, base: _Linear, expert: _Linear, x_BTD: torch.Tensor) -> torch.Tensor:
    """Each matrix on its own tokens, selected by index and written back."""
    text, image = _split_tokens(routing, x_BTD)
    outputs = base(text).flatten(0, 1), expert(image).flatten(0, 1)
    out = _MergeTokens.apply(*outputs, routing.text, routing.image)
    return out.view(*x_BTD.shape[:-1], -1)  # type: ignore[no-any-return]


def segments(routing: Routing, base: _Linear, expert: _Linear, x_BTD: torch.Tensor) -> torch.Tensor:
    """Static slices: all text slices through the base at once, all image slices likewise."""
    text, image = _split_tokens(routing, x_BTD)
    kinds = [is_image for _, _, is_image in routing.runs]
    outputs = {
        kind: list(out.split(_sizes(routing, kind), dim=1))
        for kind, out in ((False, base(text)), (True, expert(image)))
    }
    return torch.cat([outputs[kind].pop(0) for kind in kinds], dim=1)


def blend(routing: Routing, base: _Linear, expert: _Linear, x_BTD: torch.Tensor) -> torch.Tensor:
    """Both matrices on all tokens, mixed by the mask."""
    assert routing.mask is not None
    return torch.where(routing.mask.unsqueeze(-1), expert(x_BTD), base(x_BTD))


def image(routing: Routing, base: _Linear, expert: _Linear, x_BTD: torch.Tensor) -> torch.Tensor:
    """The expert alone, for calls without text."""
    return expert(x_BTD)


FORMS: Final = {"gather": gather, "segments": segments, "blend": blend, "image": image}


class _SplitTokens(torch.autograd.Function):
    """Rows of each kind. Backward writes them back, where that of an index would accumulate."""

    @staticmethod
    def forward(x_ND: torch.Tensor, text: torch.Tensor, image: torch.Tensor) -> Any:
        return x_ND.index_select(0, text), x_ND.index_select(0, image)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return _MergeTokens.apply(*gradients, *ctx.saved_tensors), None, None


class _MergeTokens(torch.autograd.Function):
    """Rows of both kinds in one tensor, each written once; the inverse of `_SplitTokens`."""

    @staticmethod
    def forward(
        text_rows: torch.Tensor, image_rows: torch.Tensor, text: torch.Tensor, image: torch.Tensor
    ) -> torch.Tensor:
        out = text_rows.new_empty(len(text) + len(image), text_rows.shape[-1])
        return out.index_copy_(0, text, text_rows).index_copy_(0, image, image_rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs[2:])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return *_SplitTokens.apply(gradients[0], *ctx.saved_tensors), None, None


def _split_tokens(routing: Routing, x_BTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The text and the image tokens, cached where several matrices have the same input."""
    compiling = torch.compiler.is_compiling()
    for given, text, image in () if compiling else tuple(routing.last_split):
        if given is x_BTD and text.requires_grad == (x_BTD.requires_grad and _records()):
            return text, image
    text, image = (_by_index if routing.form == "gather" else _by_slice)(routing, x_BTD)
    if not compiling:
        routing.last_split[:] = [(x_BTD, text, image)]
    return text, image


def _records() -> bool:
    return torch.is_grad_enabled()


def _by_index(routing: Routing, x_BTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    text, image = _SplitTokens.apply(x_BTD.flatten(0, 1), routing.text, routing.image)
    return text.unsqueeze(0), image.unsqueeze(0)


def _by_slice(routing: Routing, x_BTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    parts: dict[bool, list[torch.Tensor]] = {False: [], True: []}
    for start, end, kind in routing.runs:
        parts[kind].append(x_BTD[:, start:end])
    # GPT-2's Conv1D takes no slice of several rows as it is
    text, image = (
        p[0].contiguous() if len(p) == 1 else torch.cat(p, dim=1) for p in parts.values()
    )
    return text, image


def _sizes(routing: Routing, kind: bool) -> list[int]:
    return [end - start for start, end, is_image in routing.runs if is_image is kind]


def _routed(
    forward: _Linear, switch: Any, inside: Any, outside: Any, x_BTD: torch.Tensor
) -> torch.Tensor:
    set_routing(switch, inside)
    try:
        return forward(x_BTD)
    finally:
        set_routing(switch, outside)
