"""What a quantized export is calibrated on: the user's records, or built-in ones with pictures.

Imports torch at the top, as encoding them does.
"""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

from surgery.data.encoder import Encoder, Row
from surgery.data.file_reader import DataFile
from surgery.data.rows import Rows
from surgery.data.samples.images import draw_image
from surgery.data.samples.texts import CALIBRATION, SENTENCES
from surgery.recipe.training_schema import Source

MOST: Final = 64
"""Rows of a user's file that are taken."""
_WIDTHS: Final = (1, 2, 1, 1)
"""Of each drawn picture, in heights; a wide one becomes several tiles where a model has such."""


def prompts_of(processor: Any, file: Path | None, length: int) -> Sequence[Row]:
    """Return the prompts, of which the last is kept for measuring.

    A multimodal model is shown drawn pictures where no record has images, behind all others.

    Args:
        processor: of the model, or its tokenizer.
        file: records in a form of `surgery train`, images relative to it; None for the built-in.
        length: tokens of one, at most.

    Raises:
        SurgeryError: D101 to D110 for the file.
    """
    encoder = Encoder(processor, length)
    if file is None:
        rows = [row for text in CALIBRATION for row in encoder.text(text)]
    else:
        rows = list(islice(Rows(DataFile(Source(file=str(file))), encoder), MOST))
    if encoder.is_multimodal and not any(row.has_images for row in rows):
        rows += _with_images(processor, length)
    return rows


def _with_images(processor: Any, length: int) -> list[Row]:
    """Sentences after a picture each; what doesn't fit is cut off, be it of the picture."""
    side = max(edge for edge in dict(processor.image_processor.size).values() if edge)
    rows = []
    for number, (sentence, width) in enumerate(zip(SENTENCES, _WIDTHS, strict=True)):
        encoded = processor(
            images=[draw_image(number, side, width * side)],
            text=[processor.image_token + sentence],
            return_tensors="pt",
        )
        ids = encoded["input_ids"][0, :length]
        rows.append(Row(ids, ids, {"pixel_values": encoded["pixel_values"]}, has_images=True))
    return rows
