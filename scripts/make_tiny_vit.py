"""Write builtin/tiny-vit: a small vision tower of SigLIP's class, untrained, from one seed.

`python scripts/make_tiny_vit.py [FOLDER]`. Its weights are those that transformers starts with, so
another version of torch or transformers may give others.
"""

import sys
from pathlib import Path

import torch
from transformers import SiglipVisionConfig, SiglipVisionModel

HERE = Path(__file__).parents[1] / "surgery" / "model" / "builtin" / "tiny-vit"


def make() -> SiglipVisionModel:
    """Return the tower in bfloat16, the type of builtin/tiny-qwen2."""
    config = SiglipVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
    )
    torch.manual_seed(0)
    return SiglipVisionModel(config).to(torch.bfloat16)


if __name__ == "__main__":
    make().save_pretrained(sys.argv[1] if len(sys.argv) > 1 else HERE)
