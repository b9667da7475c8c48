"""The images of a record, decoded."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from surgery.data.base import RecordLocation
from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.diagnostics.wording import first_line
from surgery.storage.escape import escapes
from surgery.storage.json_file import open_regular


def open_images(files: Sequence[Path], location: RecordLocation) -> list[Any]:
    """Decode images to RGB.

    Raises:
        SurgeryError: D106 for one that can't be decoded.
    """
    images = []
    for file in files:
        try:
            images.append(open_image(file))
        except Exception as error:  # each decoder fails in its own way
            raise SurgeryError(
                diagnostic("D106", location=location, file=file, why=first_line(error))
            ) from error
    return images


def open_image(file: Path) -> Any:
    """Decode one image to RGB, once its size is checked: a small file may unpack to gigabytes.

    Raises:
        ValueError: For more pixels than PIL considers safe; and whatever its decoders raise.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # an error here
        with open_regular(file) as stream, Image.open(stream) as image:
            pixels, limit = image.width * image.height, Image.MAX_IMAGE_PIXELS
            if limit and pixels > limit:
                raise ValueError(
                    f"it has {pixels:,} pixels, and more than {limit:,} would take gigabytes of "
                    "memory: save it smaller"
                )
            return image.convert("RGB")


def resolve_image(images: Path, file: str, location: RecordLocation) -> Path:
    """Return the path of an image of a record.

    Args:
        images: Folder that image paths are relative to.
        file: Path as the record names it; an absolute path must be in that folder, too.
        location: File, line and record number.

    Raises:
        SurgeryError: D105 for a path that leads out of the folder; links in it may.
    """
    folder = os.path.abspath(images)
    if escapes(os.path.relpath(os.path.join(folder, file), folder)):
        raise SurgeryError(diagnostic("D105.outside", location=location, file=file, images=images))
    return images / file
