"""What a multimodal model makes of one tile of an image, as one graph without weights.

Vision tower, projector and whatever the decoder does to embeddings before its first block run as
the model's own code. How large a tile is, and how many tokens it takes, is seen from what the
model's processor makes of two pictures. Imports torch at the top: only what makes graphs reaches
it.

Shapes: C x H x W pixels of a tile, N positions that it takes in a prompt, D hidden width.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from surgery.data.encoder import Encoder
from surgery.data.vocabulary import load_processor
from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.graphs.block.step import Feeds
from surgery.graphs.block.trace_errors import reason_of
from surgery.graphs.image_placement_check import check_image_placement
from surgery.graphs.model_shell import ModelShell

if TYPE_CHECKING:
    import onnx_ir as ir

PIXELS: Final = "pixel_values"
FEATURES: Final = "features"
_OF_THE_TEXT: Final = ("input_ids", "attention_mask")
_IMAGE_SIZES: Final = ((40, 30), (30, 60))
"""Width and height of pictures that a processor of fixed tiles makes the same tiles of."""
_TEXT: Final = " What is it?"


@dataclass(frozen=True)
class Tile:
    """What a processor makes of a picture.

    Args:
        shape: (C, H, W).
        tokens: N.
        token: the id that is at each of these positions.
    """

    shape: torch.Size
    tokens: int
    token: int


class VisionGraph:
    """The vision tower and projector of a model.

    Args:
        shell: the model, a multimodal one.
        adapter: the adapter folder, whose trained vision tower and projector are taken.
        trust_remote_code: whether the processor may run code of its own.

    Raises:
        SurgeryError: A612 where the model doesn't take images in tiles of one size, X112 where a
            buffer of it isn't on disk.
    """

    def __init__(
        self, shell: ModelShell, adapter: Path, *, trust_remote_code: bool = False
    ) -> None:
        self._shell = shell
        self._adapter = adapter if shell.plan.part_swaps() else None
        try:
            self.tile = _find_tile(shell, trust_remote_code=trust_remote_code)
        except Exception as error:  # each processor and model refuses in its own way
            raise SurgeryError(
                diagnostic("A612.vision", source=shell.plan.anatomy.source, why=reason_of(error))
            ) from error
        self._read_buffers()

    def graph(self) -> "ir.Model":
        """Return the graph from `pixel_values` (1, C, H, W) to `features` (1, N, D).

        Raises:
            SurgeryError: A612 where there is none.
        """
        try:
            return self._shell.to_onnx(self._features, {PIXELS: torch.zeros(1, *self.tile.shape)})
        except SurgeryError as error:
            raise SurgeryError(
                diagnostic(
                    "A612.vision",
                    source=self._shell.plan.anatomy.source,
                    why=error.diagnostics[0].why,
                )
            ) from error

    def read_weights(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return real parameters; see `ModelShell.read_weights`."""
        return self._shell.read_weights(names, self._adapter)

    def _features(self, feeds: Feeds) -> Feeds:
        """Let the decoder begin a step with what the image became."""
        found = self._shell.model.get_image_features(pixel_values=feeds[PIXELS])
        rows = torch.cat([*_rows(getattr(found, "pooler_output", found))])[None]
        calls = self._shell.calls(torch.arange(self.tile.tokens)[None], inputs_embeds=rows)
        return {FEATURES: calls[0].tensors["hidden"]}

    def _read_buffers(self) -> None:
        """Give vision tower and projector the buffers that a checkpoint holds."""
        anatomy = self._shell.plan.anatomy
        names = {*anatomy.names_in("vision"), *anatomy.names_in("projector")}
        for tensor in anatomy.outside:
            if tensor.name in names and not tensor.is_parameter:
                module_path, _, name = tensor.name.rpartition(".")
                value = self._shell.tensors(module_path, [name], self._adapter)[name]
                self._shell.model.get_buffer(tensor.name).copy_(value)


def _rows(found: Any) -> Iterator[torch.Tensor]:
    """Rows (positions, D) of each image, whatever they are wrapped in."""
    if isinstance(found, torch.Tensor):
        yield found.reshape(-1, found.shape[-1])
        return
    for each in found:
        yield from _rows(each)


def _find_tile(shell: ModelShell, *, trust_remote_code: bool) -> Tile:
    assert shell.plan.files is not None
    processor = load_processor(shell.plan.files.folder, trust_remote_code=trust_remote_code)
    encoder = Encoder(processor, length=0)
    if not encoder.is_multimodal:
        raise ValueError("its folder has no image processor")
    prompts = [_processed(processor, size) for size in _IMAGE_SIZES]
    first, *others = (_tile(encoder, prompt) for prompt in prompts)
    if any(other != first for other in others):
        raise ValueError("its processor makes tiles of another size of another picture")
    check_image_placement(shell, prompts[0], first.token)
    return first


def _processed(processor: Any, size: tuple[int, int]) -> Mapping[str, torch.Tensor]:
    from PIL import Image

    image = Image.new("RGB", size, (120, 90, 60))
    found: Mapping[str, torch.Tensor] = processor(
        text=[f"{processor.image_token}{_TEXT}"], images=[image], return_tensors="pt"
    )
    return found


def _tile(encoder: Encoder, processed: Mapping[str, torch.Tensor]) -> Tile:
    """What one tile of a picture is, by all that the processor made of it."""
    others = sorted({*processed} - {PIXELS, *_OF_THE_TEXT})
    if others:
        raise ValueError(f"its processor gives `{others[0]}` along with the pixels")
    pixels, token = processed[PIXELS], encoder.image_token
    assert token is not None
    tokens = int((processed["input_ids"] == token).sum())
    tiles, *shape = pixels.shape
    if len(shape) != 3 or not tokens or tokens % tiles:
        raise ValueError(f"its processor makes pixels of {tuple(pixels.shape)} for {tokens} tokens")
    return Tile(torch.Size(shape), tokens // tiles, token)
