"""All inputs of a step: the decoder's, the cache, the image mask, and the low-rank pairs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from surgery.graphs.block.call import Call
from surgery.graphs.block.expert_nodes import IMAGE_MASK, takes_mask
from surgery.graphs.block.forms import Shape
from surgery.graphs.block.step import Feeds
from surgery.graphs.block.weights import read_pairs
from surgery.operations.edits import AddExpert, AddLora, Edit

_SPREAD: Final = {"hidden": 1.0, "past_key": 1.0, "past_value": 1.0}
_LORA_SPREAD: Final = 0.05


def all_inputs(
    call: Call, shape: Shape, added: Sequence[Edit], adapter: Path | None
) -> tuple[Feeds, frozenset[str]]:
    """Return one of each input of a step, and the names of those that are drawn at random.

    Args:
        call: how the decoder calls the block.
        shape: of the step.
        added: edits of the block.
        adapter: an adapter folder, whose low-rank pairs are taken; random ones without.
    """
    feeds = dict(call.tensors)
    experts = [edit for edit in added if isinstance(edit, AddExpert)]
    if experts and takes_mask(experts[0].rule):
        feeds[IMAGE_MASK] = torch.zeros(1, shape.tokens, dtype=torch.bool)
    pairs = lora_pairs([edit for edit in added if isinstance(edit, AddLora)], adapter)
    for name, new in zip(("past_key", "past_value"), call.cached, strict=False):
        if shape.window:
            feeds[name] = torch.zeros(*new[:-2], shape.window, new[-1])
    random_names = {"hidden", "past_key", "past_value", IMAGE_MASK} & feeds.keys()
    random_names |= set() if adapter else pairs.keys()
    feeds |= pairs
    return {**feeds, **draw({name: feeds[name] for name in sorted(random_names)}, 0)}, frozenset(
        random_names
    )


def draw(like: Feeds, seed: int) -> Feeds:
    """Random values of the shapes of inputs; the same ones for the same seed.

    Args:
        like: by names; one of truth values gets those.
        seed: of the generator.
    """
    generator = torch.Generator().manual_seed(seed)
    return {name: _random(name, tensor, generator) for name, tensor in like.items()}


def _random(name: str, like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if like.dtype == torch.bool:
        return torch.rand(like.shape, generator=generator) < 0.5
    return torch.randn(like.shape, generator=generator) * _SPREAD.get(name, _LORA_SPREAD)


def lora_pairs(loras: Sequence[AddLora], adapter: Path | None) -> Feeds:
    """Return A and B of each pair by the names of the graph's inputs, B with the scale in it.

    Args:
        loras: of one block or of several.
        adapter: an adapter folder; None for zeros.
    """
    found: Feeds = {}
    for edit in loras:
        a, b = (tensor.name for tensor in edit.tensors[:2])
        stored = read_pairs(adapter, edit.path) if adapter else {}
        found[a], found[b] = (
            stored[tensor.name].float() if stored else torch.zeros(tensor.shape)
            for tensor in edit.tensors[:2]
        )
        found[b] = found[b] * edit.scale
    return found
