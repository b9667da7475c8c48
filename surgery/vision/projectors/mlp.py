"""Linear, GELU, Linear on each patch, as LLaVA-1.5 has it."""

from surgery.vision.projector import Projector


class Mlp(Projector):
    """`mlp`: two linear maps, one token for each patch; Llava's own.

    Source: LLaVA-1.5 (arXiv 2310.03744), `mlp2x_gelu`.
    """

    name = "mlp"
    model_type = "llava"

    def tokens_per_side(self, patches: int) -> int:
        """As many as patches."""
        return patches
