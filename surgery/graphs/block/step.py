"""One block as a module of tensors alone: a step with its cache in and out.

Shapes: T tokens of the step, W tokens in the cache, D width, K heads of keys, C width of a head.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from surgery.graphs.block.call import Call
from surgery.graphs.block.expert_nodes import IMAGE_MASK, add_block_experts, route, with_image_mask
from surgery.graphs.block.forms import Shape
from surgery.graphs.block.kv_cache import StepCache
from surgery.graphs.block.lora_inputs import add_loras
from surgery.graphs.rms_norm import rewrite_norms
from surgery.operations.edits import AddExpert, AddLora, Edit

Feeds = dict[str, torch.Tensor]


class BlockCaller(nn.Module):
    """What the decoder is to its block; routing hooks see the call that they know.

    Args:
        block: the one block.
        call: how the decoder calls it.
    """

    def __init__(self, block: nn.Module, call: Call) -> None:
        super().__init__()
        self.block = block
        self._call = call

    def forward(
        self,
        *,
        inputs_embeds: torch.Tensor,
        past_key_values: StepCache | None,
        cache: StepCache | None,
        feeds: Feeds,
    ) -> torch.Tensor:
        """Run the block.

        Args:
            inputs_embeds: (1, T, D).
            past_key_values: what routing sees of the cache: nothing at the prompt, whose images are
                at its beginning.
            cache: for the block.
            feeds: the other inputs.

        Returns:
            The hidden state behind it, (1, T, D).
        """
        args, kwargs = self._call.fill({**feeds, "hidden": inputs_embeds}, cache)
        out = self.block(*args, **kwargs)
        hidden: torch.Tensor = out[0] if isinstance(out, tuple | list) else out
        return hidden


class Step(nn.Module):
    """A step of one block, of a dict of inputs to a dict of outputs.

    Args:
        plain: calls the block.
        shape: of the step; None for a block that has no cache, as one of a vision tower.
        given: input of the graph to the parameter of the block that it takes the place of.
        mask_context: of an image mask: the context in which the block's experts know it.
    """

    def __init__(
        self,
        plain: BlockCaller,
        shape: Shape | None,
        given: Mapping[str, str],
        mask_context: Any,
    ) -> None:
        super().__init__()
        self.plain = plain
        self._window = None if shape is None else shape.window
        self._is_prompt = shape is None or shape.phase == "prefill"
        self._given = dict(given)
        self._mask_context = mask_context

    def forward(self, feeds: Feeds) -> Feeds:
        """Run the step.

        Args:
            feeds: `hidden` (1, T, D), `mask` (1, 1, T, W + T), `cos` and `sin` or what else the
                family's blocks take; `past_key` and `past_value` (1, K, W, C) unless W is 0.

        Returns:
            `new_hidden`, and with a cache `new_key` and `new_value` (1, K, T, C) of this step.
        """
        cache = self._cache(feeds)
        swapped = {f"block.{name}": feeds[given] for given, name in self._given.items()}
        arguments = {
            "inputs_embeds": feeds["hidden"],
            "past_key_values": None if self._is_prompt else cache,
            "cache": cache,
            "feeds": feeds,
        }
        context: AbstractContextManager[None] = self._mask_context(feeds.get(IMAGE_MASK))
        with context:
            hidden = functional_call(self.plain, swapped, args=(), kwargs=arguments)
        if cache is None:
            return {"new_hidden": hidden}
        key, value = cache.new
        return {"new_hidden": hidden, "new_key": key, "new_value": value}

    def _cache(self, feeds: Feeds) -> StepCache | None:
        if self._window is None:
            return None
        past = (feeds["past_key"], feeds["past_value"]) if "past_key" in feeds else None
        return StepCache(self._window, past)


def build_step(
    block: nn.Module,
    module_path: str,
    added: Sequence[Edit],
    call: Call,
    shape: Shape | None,
    fill: Callable[[nn.Module], None],
) -> Step:
    """Make a step of a block, with what the plan puts alongside its matrices.

    Args:
        block: on the meta device; changed in place.
        module_path: its full module name.
        added: edits of the block.
        call: how the decoder calls it.
        shape: as for `Step`.
        fill: brings the block to the CPU, once its experts are in it.
    """
    experts = [edit for edit in added if isinstance(edit, AddExpert)]
    switch = add_block_experts(block, module_path, experts) if experts else None
    fill(block)
    rewrite_norms(block)
    given = add_loras(block, module_path, [edit for edit in added if isinstance(edit, AddLora)])
    plain = BlockCaller(block, call)
    if experts:
        route(plain, block, experts[0].rule)
    return Step(plain, shape, given, partial(with_image_mask, switch)).eval().requires_grad_(False)
