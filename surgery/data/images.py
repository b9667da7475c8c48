"""The images of a record, decoded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from surgery.data.record import Place
from surgery.diagnostic import Diagnostic, SurgeryError


def opened(files: Sequence[Path], place: Place) -> list[Any]:
    """Decode images to RGB.

    Raises:
        SurgeryError: D106 for one that doesn't decode.
    """
    if not files:
        return []
    from PIL import Image

    images = []
    for file in files:
        try:
            with Image.open(file) as image:
                images.append(image.convert("RGB"))
        except Exception as error:  # each decoder fails in its own way
            raise SurgeryError(_no_decoding(place, file, str(error))) from error
    return images


def _no_decoding(place: Place, file: Path, why: str) -> Diagnostic:
    return Diagnostic(
        code="D106",
        what=f"{place}: the image `{file}` can't be decoded",
        why=why,
        fix="write the file again, or leave such records out with bad_records=skip",
    )
