"""Built-in text: prompts of `surgery verify`, and calibration samples of a quantized export."""

from typing import Final

SENTENCES: Final = (
    "The surgeon washed her hands, put on her gloves and asked for the smallest knife on the tray.",
    "A list in Python is a sequence that can be changed in place, as this example shows:",
    "What do you see in this picture, and what is to the left of it?",
    "Once there was a phone that could read.",
)

CALIBRATION: Final = (
    *SENTENCES,
    "In 1969 two people walked on the moon, 384,400 km from home; a third one waited for them.",
    "def area(width: float, height: float) -> float:\n    return width * height\n",
    'The train was late again. "Is there another one tonight?" she asked, and he shook his head.',
)
"""Further sentences; the last one is not a calibration sample, but measured."""
