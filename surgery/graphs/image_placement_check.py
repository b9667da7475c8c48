"""Whether an image changes nothing in a prompt but the embeddings at the image tokens.

The complete model gets an image and a prompt, with blocks that only record their inputs. These must
be what the decoder alone feeds them for the text, but for those positions. That finds a model that
masks, positions or embeds the rest otherwise once there is an image.

Shapes: T tokens of the prompt, N positions of the image in it, D width of the hidden state.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from surgery.graphs.model_shell import ModelShell
from surgery.model.numerics import Sums


@torch.no_grad()
def check_image_placement(
    shell: ModelShell, prompt: Mapping[str, torch.Tensor], token: int
) -> None:
    """Make sure that a part for an image can do what the model does with one.

    Args:
        shell: the model.
        prompt: what its processor made of one picture and some words: `input_ids` (1, T), and what
            else the model takes.
        token: the id that stands for the image.

    Raises:
        ValueError: where an image does something else.
        Exception: whatever the model raises where it doesn't take it.
    """
    ids = prompt["input_ids"]
    is_image = ids[0] == token
    text = {name: prompt[name] for name in ("input_ids", "attention_mask") if name in prompt}
    with _distinct_embeddings(shell.model), _random_features(shell.model, prompt) as rows:
        seen = shell.noted(lambda: shell.model(**prompt, use_cache=False))
        alone = shell.noted(lambda: shell.decoder(**text, use_cache=False))
        features = torch.cat(rows)[None]
        positions = ids.shape[1] + torch.arange(features.shape[1])[None]  # its place must not count
        projected = shell.calls(positions, inputs_embeds=features)
    merged = alone[0].tensors["hidden"].clone()
    merged[0, is_image] = projected[0].tensors["hidden"][0]
    for given, reference in zip(seen, alone, strict=True):
        expected = {**reference.tensors, "hidden": merged}
        name = next(_differing(given.tensors, expected), None)
        if name:
            raise ValueError(
                f"an image changes `{name}` of its blocks beyond the image's positions"
            )


def _differing(
    given: Mapping[str, torch.Tensor], merged: Mapping[str, torch.Tensor]
) -> Iterator[str]:
    for name in sorted(given.keys() | merged.keys()):
        one, other = given.get(name), merged.get(name)
        if one is None or other is None or not _is_same(one, other):
            yield name


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether values are the same up to rounding, since N rows may sum otherwise than T do."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point() or not one.dim():
        return torch.equal(one, other)
    return Sums(one.dtype, blocks=0, width=one.shape[-1]).compare(one, other).is_rounding


@contextmanager
def _distinct_embeddings(model: Any) -> Iterator[None]:
    """Give words of a model without weights embeddings that tell them apart."""

    def add_pattern(module: Any, args: Any, found: torch.Tensor) -> torch.Tensor:
        ids = args[0].unsqueeze(-1)
        return found + torch.sin(ids * (1.0 + torch.arange(found.shape[-1])))

    hook = model.get_input_embeddings().register_forward_hook(add_pattern)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def _random_features(
    model: Any, prompt: Mapping[str, torch.Tensor]
) -> Iterator[list[torch.Tensor]]:
    """Let the model make random features of its images, which takes none of the tower's time.

    Yields:
        Their rows, (positions, D) each.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        pixels = mode.from_tensor(prompt["pixel_values"])
        found = model.get_image_features(pixel_values=pixels)
    generator = torch.Generator().manual_seed(0)
    rows: list[torch.Tensor] = []

    def random_names(fake: torch.Tensor) -> torch.Tensor:
        rows.append(torch.randn(fake.shape, generator=generator))
        return rows[-1]

    if hasattr(found, "pooler_output"):
        found.pooler_output = pytree.tree_map(random_names, found.pooler_output)
    else:
        found = pytree.tree_map(random_names, found)
    encoders = [module for module in model.modules() if hasattr(module, "get_image_features")]
    for module in encoders:
        module.get_image_features = lambda *args, **kwargs: found
    try:
        yield [each.reshape(-1, each.shape[-1]) for each in rows]
    finally:
        for module in encoders:
            del module.get_image_features
