"""The vision part of an export: what it makes of the tiles of images. numpy alone.

Shapes: C x H x W pixels of a tile, N positions that it takes in a prompt, D hidden width.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from surgery.runtime.kv_part import Engine
from surgery.runtime.manifest import PartRecord
from surgery.runtime.prompt_chunk import Features


class ImagePart:
    """Turns tiles into what takes the positions of an image in a prompt.

    Args:
        engine: runs its graph.
        name: of its folder.
        part: what the manifest says of it.
    """

    def __init__(self, engine: Engine, name: str, part: PartRecord) -> None:
        self._engine, self._name = engine, name
        self._file, self._token = next(
            (file.name, file.graph.image_token)
            for file in part.files
            if file.graph and file.graph.image_token is not None
        )

    def features(self, pixels: Any) -> Features:
        """Return what a prompt's images become.

        Args:
            pixels: (tiles, C, H, W), as the model's processor makes them of all images.
        """
        rows = [self._features_of_tile(tile) for tile in np.asarray(pixels, np.float32)]
        return Features(self._token, np.concatenate(rows))

    def _features_of_tile(self, tile: Any) -> Any:
        return self._engine.run(self._name, self._file, {"pixel_values": tile[None]})["features"][0]


def is_vision_part(part: PartRecord) -> bool:
    """Whether a part is a vision part, and not one that chunks of a prompt go through."""
    return any(file.graph and file.graph.phase == "image" for file in part.files)


def image_part(
    engine: Engine, names: Iterable[str], parts: Mapping[str, PartRecord]
) -> ImagePart | None:
    """Return the vision part of a path; None where it has none.

    Args:
        engine: runs its graph.
        names: of the path.
        parts: of the export.
    """
    name = next((name for name in names if is_vision_part(parts[name])), None)
    return ImagePart(engine, name, parts[name]) if name else None
