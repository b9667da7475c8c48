"""mergekit's passthrough, a peer of `insert`, in a virtual environment of its own.

mergekit is LGPL and brings some thirty packages, so that nothing of ours depends on it: where no
Python with mergekit is named, one is made under .venv-mergekit, with the versions of
constraints.txt.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
HOME = ROOT / ".venv-mergekit"
VERSION = "0.1.5"
PACKAGES = ("mergekit", "torch", "transformers", "safetensors")
VERSIONS = f"""
import json
from importlib.metadata import version
print(json.dumps({{p: version(p) for p in {PACKAGES}}}))
"""


def add_option(parser: argparse.ArgumentParser) -> None:
    said = "of an environment with mergekit; unless given, one is made under .venv-mergekit"
    parser.add_argument("--mergekit", type=Path, metavar="PYTHON", help=said)


def find_mergekit(python: Path | None) -> Path:
    """Return the Python that has mergekit, after making its environment where there is none."""
    if python:
        return python
    made = HOME / "bin" / "python"
    if not made.with_name("mergekit-yaml").exists():
        print(f"installing mergekit {VERSION} under {HOME.name}/", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(HOME)], check=True)
        pip = [str(made), "-m", "pip", "install", "-q", "-c", str(ROOT / "constraints.txt")]
        subprocess.run([*pip, "torch", f"mergekit=={VERSION}"], check=True)
    return made


def versions(python: Path) -> dict[str, str]:
    """Return the versions of mergekit and of what decides over its result."""
    done = subprocess.run([python, "-c", VERSIONS], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def passthrough(
    python: Path, source: Path, ranges: Sequence[Sequence[int]], dtype: str, out: Path
) -> list[str]:
    """Write mergekit's configuration beside `out`; return the command that carries it out.

    Args:
        python: see `find_mergekit`.
        source: the checkpoint's folder.
        ranges: half-open ranges of blocks, one behind the other.
        dtype: as mergekit names it.
        out: the folder to be written.
    """
    slices = [{"sources": [{"model": str(source), "layer_range": list(r)}]} for r in ranges]
    recipe = out.with_name(f"{out.name}.mergekit.yaml")
    # JSON is YAML
    recipe.write_text(json.dumps({"merge_method": "passthrough", "dtype": dtype, "slices": slices}))
    program = str(python.with_name("mergekit-yaml"))
    # without --clone-tensors a repeated block is one tensor under two names, which isn't saved
    return [program, str(recipe), str(out), "--lazy-unpickle", "--clone-tensors"]
