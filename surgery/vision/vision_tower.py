"""Sizes of a vision tower, read without its weights.

The tower is built on the meta device and called once, so that its output shape is measured.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ConfigDict

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.diagnostics.wording import first_line, named_line
from surgery.model.anatomy import Tensor
from surgery.model.source import ModelFiles
from surgery.model.structure.inspector import tensors_of
from surgery.storage.cache import cached

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_FORMAT: Final = "2"


class VisionTower(BaseModel):
    """Sizes and tensors of a vision tower.

    Args:
        config: Content of its config.json, as transformers writes it.
        hidden_size: Embedding dimension of one patch, in channels.
        image_size: Side of its square input, in pixels.
        grid_size: Side of the square of patches, in patches.
        prefix_tokens: Number of tokens before the patches, such as a class token; 0 or 1.
        tensors: Parameters and buffers under their names in the tower.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: dict[str, Any]
    hidden_size: int
    image_size: int
    grid_size: int
    prefix_tokens: int
    tensors: tuple[Tensor, ...]


def read_vision_tower(files: ModelFiles) -> VisionTower:
    """Return the sizes and tensors of a vision tower; of SigLIP or CLIP, of its vision part.

    Args:
        files: Files of the model.

    Raises:
        SurgeryError: M104 for a config that is not JSON, M122 for a model that is no vision tower,
            M123 for one that doesn't give a square of patches.
    """
    if "auto_map" in files.config():
        raise SurgeryError(_no_tower(files.source, "it runs Python code of its own"))
    key = (_FORMAT, version("transformers"), files.config())
    return cached("towers", key, VisionTower, lambda: _inspect(files))


def meta_vision_tower(files: ModelFiles) -> "PreTrainedModel":
    """Build the tower on the meta device.

    Raises:
        SurgeryError: M122, where transformers can't.
    """
    import torch
    from transformers import AutoConfig, AutoModel

    try:
        config = AutoConfig.from_pretrained(files.folder)
        with torch.device("meta"):
            model: PreTrainedModel = AutoModel.from_config(getattr(config, "vision_config", config))
    except Exception as error:  # a config may be wrong in as many ways as there are classes
        raise SurgeryError(_no_tower(files.source, _reason(error))) from error
    return model


def _inspect(files: ModelFiles) -> VisionTower:
    import torch

    model = meta_vision_tower(files)
    config: Any = model.config
    try:
        image_size = _image_size(config)
        pixels = torch.zeros(1, config.num_channels, image_size, image_size, device="meta")
        with torch.no_grad():
            hidden = model(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
        _, tokens, width = hidden.shape
    except Exception as error:  # any decoder fails here, each in its own way
        raise SurgeryError(_no_tower(files.source, _reason(error))) from error
    prefix = next((n for n in (0, 1) if round((tokens - n) ** 0.5) ** 2 == tokens - n), None)
    if prefix is None or width != config.hidden_size:
        raise SurgeryError(
            diagnostic(
                "M123",
                source=files.source,
                tokens=tokens,
                width=width,
                hidden=config.hidden_size,
                key="vision",
            )
        )
    return VisionTower(
        config={**config.to_diff_dict(), "model_type": config.model_type},
        hidden_size=width,
        image_size=image_size,
        grid_size=round((tokens - prefix) ** 0.5),
        prefix_tokens=prefix,
        tensors=tuple(tensors_of(model)),
    )


def _image_size(config: Any) -> int:
    size = config.image_size
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) > 1:
        raise ValueError(f"it takes images of {size[0]} x {size[1]} pixels, which is no square")
    side: int = sides.pop()
    return side


def _reason(error: Exception) -> str:
    return first_line(error) if isinstance(error, ValueError) else named_line(error)


def _no_tower(source: str, why: str) -> Diagnostic:
    return diagnostic("M122", source=source, why=why, key="vision")
