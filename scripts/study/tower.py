"""Gives builtin/tiny-vit, which is random, what SigLIP's pretraining gives a real tower: features.

It learns to name the digit in each half of a picture; its two linear maps on top are thrown away.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import SiglipVisionModel

from study.pictures import Pictures
from surgery.model.source import find_model

BATCH = 64
RATE = 2e-3
CLASSES = 10


def pretrain_tower(vision: str, pictures: Pictures, steps: int, seed: int, out: Path) -> float:
    """Train a tower of SigLIP's class on digits, and save it.

    Args:
        vision: the tower that is begun from.
        pictures: of the training split.
        steps: of AdamW, with 64 pictures each, cosine from 2e-3.
        seed: of the order of the pictures and of the linear maps.
        out: the folder to make.

    Returns:
        The share of halves named right in the last 20 batches, which it is trained on.
    """
    torch.manual_seed(seed)
    tower = SiglipVisionModel.from_pretrained(find_model(vision).folder, dtype=torch.float32)
    width, side = tower.config.hidden_size, tower.config.image_size // tower.config.patch_size
    head = torch.nn.Linear(width, CLASSES)
    parameters = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    pixels, names = _pixels(pictures), torch.tensor([d * (3 - len(d)) for d in pictures.digits])
    right = []
    for _ in range(steps):
        chosen = torch.randint(len(pixels), (BATCH,))
        patches = tower(pixel_values=pixels[chosen]).last_hidden_state
        halves = patches.unflatten(1, (side, 2, side // 2)).mean((1, 3))
        scores = head(halves).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(scores, names[chosen].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        right.append(float((scores.argmax(-1) == names[chosen].flatten()).float().mean()))
    tower.save_pretrained(out)
    return float(np.mean(right[-20:]))


def _pixels(pictures: Pictures) -> torch.Tensor:
    """(pictures, 3, side, side) in -1 to 1, as the processor of an assembled model gives them."""
    grey = torch.tensor(pictures.arrays).float() / 127.5 - 1
    return grey[:, None].expand(-1, 3, -1, -1).contiguous()
