"""Base class of projectors, which map the tokens of a vision tower to a decoder's embeddings.

A module in `surgery/vision/projectors/` defines one subclass; nothing else lists it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from surgery.plugins import classes_in

PROJECTOR_PATH: Final = "model.multi_modal_projector"
"""Module name of the projector in the vision-language classes."""


class Projector(ABC):
    """One kind of projector.

    Args:
        name: Value of `projector:` in a recipe, and name of the file.
        model_type: Model type that contains it, in transformers or in
            `surgery/model/remote_models`.
        fields: Further keys of the model's config.
    """

    name: ClassVar[str]
    model_type: ClassVar[str]
    fields: ClassVar[Mapping[str, Any]] = {}

    @abstractmethod
    def tokens_per_side(self, patches: int) -> int:
        """Side of the square of tokens, in tokens, for a square with so many patches a side."""


def known_projectors() -> dict[str, Projector]:
    """Every projector by its name, found in the folder `surgery/vision/projectors`."""
    found = classes_in("surgery.vision.projectors", Projector)  # type: ignore[type-abstract]
    return {cls.name: cls() for cls in found}
