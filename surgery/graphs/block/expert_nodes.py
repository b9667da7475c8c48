"""Visual experts of the matrices of one block, routed by a mask that is an input of the graph.

The modules and the routing are those of `surgery.layers`, as they run in the complete model.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import torch
from torch import nn

from surgery.layers.class_mixin import with_mixin
from surgery.layers.expert import ExpertMatrix, add_experts
from surgery.layers.image_tokens import CALLER_MASK, ImageMask
from surgery.layers.routing import register_routing
from surgery.operations.edits import AddExpert, RoutingRule
from surgery.paths.path_state import MULTIMODAL, Switch, SwitchedLayer
from surgery.storage.file_names import ADAPTER

IMAGE_MASK: Final = "image_mask"
"""The input that is True at image tokens, bool (1, T)."""

_STORED_NAMES: Final = {"original_module.": "", f"expert.{ADAPTER}.": "expert."}


def add_block_experts(block: nn.Module, module_path: str, edits: Sequence[AddExpert]) -> Switch:
    """Wrap the matrices of a block; they are on the multimodal path for good.

    Args:
        block: changed in place, on any device.
        module_path: its full module name.
        edits: of this block.

    Returns:
        The switch that tells the matrices of the mask.
    """
    names = [path.removeprefix(f"{module_path}.") for edit in edits for path in edit.matrices]
    add_experts(block, names, ADAPTER)
    switch = Switch()
    switch.fixed = MULTIMODAL
    for module in _experts(block):
        module.__class__ = with_mixin(SwitchedLayer, type(module))
        module._switch = switch
    return switch


def route(step: nn.Module, block: nn.Module, rule: RoutingRule) -> None:
    """Let a step work its routing out at the beginning of each call, as a decoder does.

    Args:
        step: calls the block, and is called with `inputs_embeds` and `past_key_values`.
        block: with experts.
        rule: the recipe's. Shared positions are the caller's, in the rotary embeddings that come
            in.
    """
    register_routing(step, step, next(_experts(block)), replace(rule, positions="plain"), None)


def takes_mask(rule: RoutingRule) -> bool:
    """Whether a graph has the mask as an input; with `runs` its positions are in the graph."""
    return not (rule.form == "segments" and rule.runs)


@contextmanager
def with_image_mask(switch: Switch | None, mask: torch.Tensor | None) -> Iterator[None]:
    """Tell the experts of one call which of its tokens are image tokens."""
    if switch is None or mask is None:
        yield
        return
    CALLER_MASK.write(switch, ImageMask(mask))
    try:
        yield
    finally:
        CALLER_MASK.write(switch, None)


def stored_name(name: str) -> str:
    """What the base or the adapter calls a parameter of a wrapped block."""
    for wrapped, stored in _STORED_NAMES.items():
        name = name.replace(wrapped, stored)
    return name


def _experts(block: nn.Module) -> Iterator[Any]:
    return (module for module in block.modules() if isinstance(module, ExpertMatrix))
