"""Make a checkpoint of a built-in model's shape, with random weights.

    python benchmarks/checkpoint.py builtin/qwen2.5-3b FOLDER

Two shards, their index and the built-in's config.json. The numbers are bf16 of the size of real
weights (2^-7 to 2^-5, either sign). The seed of a tensor is its position.
"""

import json
import math
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parent.parent


def make_checkpoint(source: str, folder: Path) -> None:
    """Make the checkpoint in a process of its own, so that this one stays small."""
    command = [sys.executable, __file__, source, str(folder)]
    subprocess.run(command, check=True, cwd=ROOT)


def write_checkpoint(source: str, folder: Path) -> None:
    from surgery import find_model, read_anatomy
    from surgery.storage.safetensors.writer import NewTensor, write_safetensors

    anatomy = read_anatomy(source)
    tensors = [
        NewTensor(t.name, "BF16", t.shape, partial(random_bf16, math.prod(t.shape), seed))
        for seed, t in enumerate(anatomy.tensors())
    ]
    folder.mkdir(parents=True)
    half = len(tensors) // 2
    shards = {1: sorted_as_stored(tensors[:half]), 2: sorted_as_stored(tensors[half:])}
    names = {k: f"model-{k:05}-of-00002.safetensors" for k in shards}
    for k, part in shards.items():
        write_safetensors(folder / names[k], part)
    index = {
        "metadata": {"total_size": sum(t.nbytes for t in tensors)},
        "weight_map": {t.name: names[k] for k, part in shards.items() for t in part},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    shutil.copy(find_model(source).folder / "config.json", folder)


def sorted_as_stored(tensors: list) -> list:
    """By name, as the safetensors library orders tensors of one type."""
    return sorted(tensors, key=lambda tensor: tensor.name)


def random_bf16(count: int, seed: int) -> bytes:
    import numpy as np

    raw = np.frombuffer(np.random.default_rng(seed).bytes(2 * count), "<u2")
    return ((raw & 0x80FF) | 0x3C00).astype("<u2").tobytes()


if __name__ == "__main__":
    write_checkpoint(sys.argv[1], Path(sys.argv[2]))
