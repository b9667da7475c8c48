"""The base of projectors: what stands between the tokens of a vision tower and a decoder.

A module in `surgery/vision/projectors/` defines one subclass; nothing else has to know of it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from surgery.plugins import classes_in

PROJECTOR_PATH: Final = "model.multi_modal_projector"
"""Where the vision-language classes hold it."""


class Projector(ABC):
    """One kind of projector.

    Args:
        word: what `projector:` in a recipe says; the name of its file.
        model_type: of the model that holds it, in transformers or in `surgery/model/remote_models`.
        fields: what the model's config says beside.
    """

    name: ClassVar[str]
    model_type: ClassVar[str]
    fields: ClassVar[Mapping[str, Any]] = {}

    @abstractmethod
    def tokens_per_side(self, patches: int) -> int:
        """Tokens a side that come of so many patches a side."""


def known_projectors() -> dict[str, Projector]:
    """Every projector by its word, found in the folder `surgery/vision/projectors`."""
    found = classes_in("surgery.vision.projectors", Projector)  # type: ignore[type-abstract]
    return {cls.name: cls() for cls in found}
