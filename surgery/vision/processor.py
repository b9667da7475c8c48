"""The processor of an assembled model: transformers' AyaVision on the decoder's tokenizer.

It is the only one of transformers 5.17 to 5.23 with a configurable number of tokens for each tile,
separate tiles, a single special token and no video. Its image processor, GOT-OCR2's, fits an image
to a grid of tiles and appends the complete image as a thumbnail.
"""

import json
from pathlib import Path
from typing import Any, Final

from surgery.vision.vision_tower import VisionTower

_MEAN: Final = (0.5, 0.5, 0.5)
TILE: Final = "tile"
"""Plain text before each tile except the thumbnail, with the tile's number: `tile_1`."""

_FLATTEN: Final = """\
{%- set flat = namespace(messages=[]) -%}
{%- for message in messages -%}
  {%- set said = namespace(text='') -%}
  {%- if message.content is string or message.content is not iterable -%}
    {%- set flat.messages = flat.messages + [message] -%}
  {%- else -%}
    {%- for part in message.content -%}
      {%- set said.text = said.text + ('IMAGE' if part.type == 'image' else part.text) -%}
    {%- endfor -%}
    {%- set flat.messages = flat.messages + [dict(message, content=said.text)] -%}
  {%- endif -%}
{%- endfor -%}
{%- set messages = flat.messages -%}
"""


def make_processor(
    tokenizer: Any, token: str, tower: VisionTower, folder: Path, side: int, tiles: int
) -> Any:
    """Return the processor.

    Args:
        tokenizer: Tokenizer of the decoder, with the image token.
        token: Text of the image token, which stands for an image in a prompt and for each of its
            tokens in `input_ids`.
        tower: The vision tower.
        folder: Folder of the tower, perhaps with a preprocessor_config.json.
        side: Side of the square of tokens that the projector makes of a tile, in tokens.
        tiles: Maximum number of tiles; 1 resizes the complete image to one.
    """
    from transformers import AyaVisionProcessor
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    images = GotOcr2ImageProcessorPil(
        size={"height": tower.image_size, "width": tower.image_size},
        min_patches=1,
        max_patches=tiles,
        crop_to_patches=tiles > 1,
        **_channels(folder),
    )
    return AyaVisionProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        # it takes (img_size // patch_size)^2 for the tokens of a tile
        img_size=side,
        patch_size=1,
        image_token=token,
        img_patch_token=token,
        start_of_img_token="",
        end_of_img_token="",
        img_line_break_token="",
        tile_token=TILE,
        tile_global_token="",
        chat_template=_with_images(tokenizer.chat_template, token),
    )


def _channels(folder: Path) -> dict[str, Any]:
    """Mean and standard deviation of each channel in the tower's training; SigLIP's by default."""
    file = folder / "preprocessor_config.json"
    config = json.loads(file.read_bytes()) if file.is_file() else {}
    return {key: config.get(key, _MEAN) for key in ("image_mean", "image_std")}


def _with_images(template: str | None, token: str) -> str | None:
    """A chat template that takes content as parts of text and images; None where there is none."""
    if not isinstance(template, str):
        return None
    return _FLATTEN.replace("IMAGE", token) + template
