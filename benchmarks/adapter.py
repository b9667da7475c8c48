"""Make an adapter of GenieBlue-Skip that looks trained.

    python benchmarks/adapter.py BASE FOLDER

The numbers are always the same.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def make_adapter(base: Path, out: Path) -> None:
    """Apply the recipe, and let each B be what training might make of it, in other processes."""
    command = [sys.executable, __file__, str(base), str(out)]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def write_adapter(base: Path, out: Path) -> None:
    from surgery.cli import main

    sys.argv = ["surgery", "apply", "genieblue_skip", f"model={base}", "--out", str(out)]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
    shake(out)


def shake(adapter: Path) -> None:
    """Write small random numbers over every B of an adapter."""
    import numpy as np

    from surgery.storage.safetensors.header import read_header

    file = adapter / "adapter_model.safetensors"
    random = np.random.default_rng(0)
    with file.open("r+b") as stream:
        for tensor in read_header(file).values():
            if ".lora_B." in tensor.name:
                stream.seek(tensor.offset)
                numbers = random.standard_normal(tensor.shape, np.float32) * 0.01
                stream.write(numbers.tobytes())


if __name__ == "__main__":
    write_adapter(*map(Path, sys.argv[1:]))
