"""What arXiv 2503.06019 prints for the same recipes, tables 1 and 4 to 6: two bases, after 9M.

Its retentions are of averages over benchmarks; ours of text are of perplexities. Its score is the
mean of seven benchmarks of pictures.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Printed:
    """The paper's figures of one recipe on one base, in percent; None where it prints none.

    Args:
        score: mean of its multimodal benchmarks.
        retention: of full fine-tuning's score.
        shared: retention of the base's text score on the shared path.
        text: the same on the non-shared one.
        trainable: parameters in millions.
    """

    score: float | None = None
    retention: float | None = None
    shared: float | None = None
    text: float | None = None
    trainable: float | None = None


BLUELM = {
    "full_finetune": Printed(66.19, 100.0, 78.18, None, 3161.26),
    "lora": Printed(60.78, 91.82, 93.63, None, 458.06),
    "cogvlm_post": Printed(61.26, 92.55, None, None, 1005.69),
    "cogvlm_pre": Printed(62.20, 93.98, None, None, 1005.69),
    "cogvlm_skip": Printed(63.94, 96.60, None, None, 1005.69),
    "genieblue_post": Printed(62.10, 93.82, 92.98, 100.0, 1005.73),
    "genieblue_pre": Printed(64.03, 96.74, 89.12, 100.0, 1005.73),
    "genieblue_skip": Printed(65.52, 98.99, 90.42, 100.0, 1005.73),
}
"""BlueLM-3B."""

QWEN = {
    "full_finetune": Printed(64.71, 100.0, 85.33, None, 3527.81),
    "lora": Printed(58.61, 90.58, 81.48, None, 456.84),
    "cogvlm_post": Printed(59.88, 92.53, None, None, 1146.75),
    "cogvlm_pre": Printed(62.17, 96.08, None, None, 1146.75),
    "cogvlm_skip": Printed(62.87, 97.16, None, None, 1146.75),
    "genieblue_post": Printed(61.26, 94.66, 83.81, 100.0, 1146.79),
    "genieblue_pre": Printed(60.46, 93.44, None, 100.0, 1146.79),
    "genieblue_skip": Printed(None, None, None, 100.0, 1146.79),
    "wings": Printed(shared=77.5),
}
"""Qwen2.5-3B; Wings is Wings-Qwen1.5-8B of table 1, beside Qwen1.5-7B, by its mean loss of 22.5."""
