"""The images of a record, decoded."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from surgery.data.base import RecordLocation
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.diagnostics.wording import first_line
from surgery.storage.escape import escapes
from surgery.storage.json_file import open_regular


def open_images(files: Sequence[Path], location: RecordLocation) -> list[Any]:
    """Decode images to RGB.

    Raises:
        SurgeryError: D106 for one that doesn't decode.
    """
    images = []
    for file in files:
        try:
            images.append(open_image(file))
        except Exception as error:  # each decoder fails in its own way
            raise SurgeryError(_no_decoding(location, file, first_line(error))) from error
    return images


def open_image(file: Path) -> Any:
    """Decode one image to RGB, after a look at its size: a small file may unpack to gigabytes.

    Raises:
        ValueError: for more pixels than PIL holds for safe; and whatever its decoders raise.
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
    """Return where an image of a record is.

    Args:
        images: The folder that image paths are relative to.
        file: As the record names it; an absolute path must lie in that folder, too.
        location: Of the record.

    Raises:
        SurgeryError: D105 for a path that leads out of the folder; links in it may.
    """
    folder = os.path.abspath(images)
    if escapes(os.path.relpath(os.path.join(folder, file), folder)):
        raise SurgeryError(_outside(location, file, images))
    return images / file


def _outside(location: RecordLocation, file: str, images: Path) -> Diagnostic:
    return Diagnostic(
        code="D105",
        what=f"{location}: the image `{file}` lies outside of `{images}`",
        why="a data file may come from anywhere, so it shows no files but those of its own folder",
        fix="name a folder that holds all its images with `images`, such as `/data`; `/` holds all",
    )


def _no_decoding(location: RecordLocation, file: Path, why: str) -> Diagnostic:
    return Diagnostic(
        code="D106",
        what=f"{location}: the image `{file}` can't be decoded",
        why=why,
        fix="write the file again, or leave such records out with bad_records=skip",
    )
