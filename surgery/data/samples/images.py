"""Generated images, for where a multimodal model needs one and no photo is given; numpy only."""

from typing import Any, Final

import numpy as np

_GRAIN: Final = 12
"""Standard deviation of the noise on each pixel, of 255."""


def draw_image(number: int, height: int, width: int) -> Any:
    """Draw an image with slopes, waves, edges, black, white, and some noise.

    Args:
        number: Seed; the same number always gives the same image, and no two are identical.
        height: Height in pixels.
        width: Width in pixels.

    Returns:
        (height, width, 3), uint8.
    """
    rng = np.random.default_rng(number)
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    drawn = 128 + 90 * (np.stack([x, y], axis=-1) - 0.5) @ rng.uniform(-1, 1, (2, 3))
    across, down = rng.uniform(-40, 40, 2)
    drawn += np.sin(across * x + down * y)[..., None] * rng.uniform(-60, 60, 3)
    for color in (0, 255, rng.integers(0, 256, 3)):
        left, top = rng.uniform(0.1, 0.9, 2)
        drawn[(x - left) ** 2 + (y - top) ** 2 < rng.uniform(0.01, 0.06)] = color
    drawn += rng.normal(0, _GRAIN, drawn.shape)
    return drawn.clip(0, 255).astype(np.uint8)
