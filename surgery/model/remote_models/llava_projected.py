"""Llava with a projector that transformers' Llava doesn't have: `mlp_downsample` or `linear`.

InternVL has the former's layers, but its config takes no vision tower except its own, and its pixel
shuffle no grid with an odd number of patches a side. Source of both projectors: VILA,
`llava/model/multimodal_projector/base_projector.py`.
"""

from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaModel,
)
from transformers.activations import ACT2FN


class LlavaProjectedConfig(LlavaConfig):
    """Llava's config, and which projector; its own model type, so that no other class opens it."""

    model_type = "llava_projected"
    projector_type: str = "mlp_downsample"


class Downsample(nn.Module):
    """Concatenate 2 x 2 patches into one token; zeros below and to the right of an odd grid."""

    def forward(self, patches: Tensor) -> Tensor:
        """Make (images, tokens, 4 x width) of (images, patches, width).

        A token is upper left, upper right, lower left, lower right, as in VILA. Tokens are in rows
        from the top, where VILA's first version went down the columns, and its later one doesn't.
        """
        images, count, width = patches.shape
        side = round(count**0.5)
        half = (side + 1) // 2
        grid = patches.reshape(images, side, side, width)
        grid = nn.functional.pad(grid, (0, 0, 0, side % 2, 0, side % 2))
        # of a rank no higher than 4, since Qualcomm's compiler takes none above 5
        squares = grid.reshape(images * half, 2, half, 2 * width).transpose(1, 2)
        return squares.reshape(images, half * half, 4 * width)


class DownsampleProjector(nn.Sequential):
    """Downsample, LayerNorm, Linear, GELU, Linear."""

    def __init__(self, config: LlavaProjectedConfig) -> None:
        width, text = 4 * config.vision_config.hidden_size, config.text_config.hidden_size
        super().__init__()
        self.downsample = Downsample()
        self.layer_norm = nn.LayerNorm(width)
        self.linear_1 = nn.Linear(width, text)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(text, text)


class LinearProjector(nn.Sequential):
    """One linear map."""

    def __init__(self, config: LlavaProjectedConfig) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(config.vision_config.hidden_size, config.text_config.hidden_size)


PROJECTORS = {"mlp_downsample": DownsampleProjector, "linear": LinearProjector}


class LlavaProjectedModel(LlavaModel):
    """Llava's model with that projector."""

    config_class = LlavaProjectedConfig

    def __init__(self, config: LlavaProjectedConfig) -> None:
        super().__init__(config)
        self.multi_modal_projector = PROJECTORS[config.projector_type](config)
        self.post_init()


class LlavaProjectedForConditionalGeneration(LlavaForConditionalGeneration):
    """Llava with a language modelling head, over `LlavaProjectedModel`."""

    config_class = LlavaProjectedConfig

    def __init__(self, config: LlavaProjectedConfig) -> None:
        super(LlavaForConditionalGeneration, self).__init__(config)
        text = config.text_config
        self.model = LlavaProjectedModel(config)
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=False)
        self.post_init()


AutoConfig.register(LlavaProjectedConfig.model_type, LlavaProjectedConfig, exist_ok=True)
AutoModelForImageTextToText.register(
    LlavaProjectedConfig, LlavaProjectedForConditionalGeneration, exist_ok=True
)
LlavaProjectedConfig.register_for_auto_class()
LlavaProjectedForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
