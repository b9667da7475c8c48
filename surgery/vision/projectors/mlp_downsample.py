"""2 x 2 patches concatenated, LayerNorm, Linear, GELU, Linear."""

from surgery.vision.projector import Projector


class MlpDownsample(Projector):
    """`mlp_downsample`: a quarter of the tokens; zeros below and to the right of an odd grid.

    Source: VILA (arXiv 2312.07533), which BlueLM-V-3B and GenieBlue (arXiv 2503.06019) cite.
    """

    name = "mlp_downsample"
    model_type = "llava_projected"
    fields = {"projector_type": "mlp_downsample"}

    def tokens_per_side(self, patches: int) -> int:
        """Half as many as patches, rounded up: 27 patches a side give 14 tokens."""
        return (patches + 1) // 2
