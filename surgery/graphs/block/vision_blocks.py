"""What stands before the decoder of a multimodal model: blocks of a vision tower, and a projector.

How they are called is found by letting the model, on the meta device, take one image of the size
that it was made for; so the projector gets the patches of a single image.
"""

from collections.abc import Iterator
from itertools import takewhile
from typing import Any, Final

import torch
from torch import nn

from surgery.graphs.block.call import Call, named_call
from surgery.graphs.block.forms import BlockForm
from surgery.model.anatomy import Anatomy

BLOCK: Final = "vision.block"
PROJECTOR: Final = "projector"


def vision_forms(model: nn.Module, anatomy: Anatomy) -> list[BlockForm]:
    """Return the forms of a multimodal model, the block's first; none without a vision tower.

    Args:
        model: on any device.
        anatomy: its map.
    """
    found = ((BLOCK, _first_block(model, anatomy)), (PROJECTOR, _projector(anatomy)))
    return [
        BlockForm(name, (), ("multimodal",), module_path)
        for name, module_path in found
        if module_path
    ]


def find_vision_call(model: Any, module_path: str) -> Call:
    """Return how the model calls a module while it takes one image.

    Args:
        model: its vision tower and projector on the meta device.
        module_path: full module name of the module.

    Raises:
        Exception: whatever the model raises where it takes no plain image.
    """
    seen: list[tuple[Any, dict[str, Any]]] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        seen.append((args, kwargs))

    module = model.get_submodule(module_path)
    hook = module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with torch.no_grad():
            model.get_image_features(pixel_values=_image(model.config.vision_config))
    except Exception:
        if not seen:  # what fails after the module is ignored
            raise
    finally:
        hook.remove()
    if not seen:
        raise ValueError("the model doesn't call it when it takes an image")
    call = named_call(seen[0], module)
    zeros = {name: torch.zeros_like(t, device="cpu") for name, t in call.tensors.items()}
    return Call(call.arguments, zeros)


def _image(config: Any) -> torch.Tensor:
    size = config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return torch.zeros(1, config.num_channels, height, width, device="meta")


def _first_block(model: nn.Module, anatomy: Anatomy) -> str:
    """The first block of the list that has most parameters within the vision tower."""
    names = anatomy.names_in("vision")
    root = _above(names)
    lists = _lists(model.get_submodule(root), root) if names else ()
    path, _ = max(lists, key=lambda found: found[1], default=("", 0))
    return f"{path}.0" if path else ""


def _lists(tower: nn.Module, root: str) -> Iterator[tuple[str, int]]:
    for name, module in tower.named_modules(prefix=root):
        if isinstance(module, nn.ModuleList) and len(module):
            yield name, sum(parameter.numel() for parameter in module.parameters())


def _projector(anatomy: Anatomy) -> str:
    return _above(anatomy.names_in("projector"))


def _above(names: list[str]) -> str:
    """The innermost module that holds all of these tensors."""
    outer = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return ".".join(parts[0] for parts in takewhile(lambda same: len({*same}) == 1, outer))
