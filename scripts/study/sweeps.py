"""The trainings as three sweeps of `surgery sweep --job train`: one for each kind of recipe."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STAGE = "tune"
WINGS = "wings"


@dataclass(frozen=True)
class Sweep:
    """One sweep.

    Args:
        name: of its folder.
        recipes: as `surgery sweep` takes them.
        words: overrides that it has besides the common ones.
    """

    name: str
    recipes: tuple[str, ...]
    words: tuple[str, ...] = ()

    @property
    def mixed(self) -> bool:
        """Whether text is mixed in."""
        return self.name == "mixed"


def make_sweeps(
    recipes: Sequence[str], mixed: Sequence[str], sight: Path, text: Path, share: float
) -> list[Sweep]:
    """Return the sweeps.

    Args:
        recipes: trained on pictures alone.
        mixed: trained on pictures and text.
        sight: JSONL of questions about pictures.
        text: JSONL of text.
        share: of rows of text in `mixed`.
    """
    data = f"stages.{STAGE}.data.sight={sight}"
    with_text = (data, f"stages.{STAGE}.data.text={text}", f"stages.{STAGE}.text_mix={share}")
    plain = tuple(recipe for recipe in recipes if recipe != WINGS)
    sweeps = [
        Sweep("sight", plain, (data,)),
        # its own first stage is what `align` was for all
        Sweep("wings", (WINGS,) if WINGS in recipes else (), ("~stages.align", data)),
        Sweep("mixed", tuple(mixed), with_text),
    ]
    return [sweep for sweep in sweeps if sweep.recipes]


def run_sweep(
    sweep: Sweep, common: Sequence[str], seeds: Sequence[int], jobs: int, out: Path
) -> list[Mapping[str, Any]]:
    """Train every recipe with every seed, each from the seed's aligned model.

    Args:
        sweep: what.
        common: overrides that all sweeps have.
        seeds: of the recipes.
        jobs: that run at once.
        out: the folder of all sweeps.

    Returns:
        Every job's result.json.

    Raises:
        RuntimeError: if a job failed.
    """
    folder = out / sweep.name
    words = [f"recipe={','.join(sweep.recipes)}", f"seed={','.join(map(str, seeds))}"]
    launcher = ["--launcher", "joblib", f"hydra.launcher.n_jobs={jobs}"] if jobs > 1 else []
    command = [sys.executable, "-m", "surgery", "sweep", *words, *sweep.words, *common]
    command += ["--job", "train", "--out", str(folder), *launcher]
    done = subprocess.run(command, check=False, env=os.environ)
    if done.returncode:
        raise RuntimeError(f"the sweep in {folder} failed; its results.json says why")
    results: list[Mapping[str, Any]] = json.loads((folder / "results.json").read_text())["results"]
    return results
