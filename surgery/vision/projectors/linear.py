"""One linear map on each patch."""

from surgery.vision.projector import Projector


class Linear(Projector):
    """`linear`: one linear map, one token for each patch.

    Source: LLaVA (arXiv 2304.08485).
    """

    name = "linear"
    model_type = "llava_projected"
    fields = {"projector_type": "linear"}

    def tokens_per_side(self, patches: int) -> int:
        """As many as patches."""
        return patches
