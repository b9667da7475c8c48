"""One aligned model per seed, which every recipe starts from: base, pretrained tower, projector."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from surgery.adapter.folder import load_adapter
from surgery.recipe.loading import load_recipe
from surgery.storage.file_names import ASSEMBLED_FOLDER
from surgery.training.train import train_recipe


def align(words: Sequence[str], out: Path, folder: Path) -> Path:
    """Assemble a base that sees, train its projector alone, and put the projector into it.

    Args:
        words: overrides of the recipe `sighted`, with its one stage, `align`.
        out: the adapter that the training makes.
        folder: the model to make, an assembled one in which the projector is aligned.
    """
    train_recipe(load_recipe("sighted", words), out)
    shutil.copytree(out / ASSEMBLED_FOLDER, folder)
    load_adapter(out).merge_and_unload().save_pretrained(folder)
    return folder
