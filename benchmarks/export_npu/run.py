"""Can a whole 3B model be quantized and compiled for an NPU on two cores? See README.md.

    python benchmarks/export_npu/run.py [--model builtin/qwen2.5-3b] [--work FOLDER]

Makes a checkpoint of the model's shape (6.2 GB of random weights) and a GenieBlue-Skip adapter of
it, exports every part for one token at a time with `surgery export --to qnn`, kills that once and
goes on, and lets both paths take two tokens in the emulator and on the CPU. Writes results.json
and the table in README.md. It takes about half an hour; a work folder that is named is kept.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from adapter import make_adapter
from checkpoint import ROOT, make_checkpoint
from measure import SURGERY, Run, table, write_results
from watch import watched

HERE = Path(__file__).parent.resolve()
HOW = ["--to", "qnn", "--target", "snapdragon", "--prefill", "1", "--context", "1024"]
TOKENIZER = ROOT / "surgery/model/builtin/tiny-qwen2"
KILLED_AT = "block.1"
TOKENS = (70, 5)
GOALS = {"minutes": 40, "gb": 6}


def prepare(model: str, work: Path) -> None:
    """Make the base, with a tokenizer for the built-in sentences, and the adapter."""
    base = work / "base"
    if not base.exists():
        make_checkpoint(model, base)
        for file in TOKENIZER.glob("token*"):
            shutil.copy(file, base)
        make_adapter(base, work / "adapter")


def export(work: Path) -> dict[str, Run]:
    """Export; killed behind its second block, and again to its end."""
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(work / ".out.work", ignore_errors=True)
    command = [*SURGERY, "export", work / "adapter", "--out", out, *HOW]
    done = work / ".out.work/made" / f"{KILLED_AT}.json"
    killed = watched(command, stop=done.exists)
    assert not out.exists()
    before = done.stat().st_mtime_ns
    rest = watched(command, stop=lambda: done.exists() and done.stat().st_mtime_ns != before)
    assert out.exists(), "what was made before the kill was made again"
    return {"killed": killed, "rest": rest}


def agreement(out: Path, path: str) -> dict[str, float]:
    """Let a path take tokens in the emulator and on the CPU, and compare behind the last."""
    import numpy as np

    from surgery.runtime.formats.qnn import OnEmulator, OnReference, open_emulator
    from surgery.runtime.graph_loop import open_loop
    from surgery.runtime.manifest import read_manifest

    manifest = read_manifest(out)
    with open_emulator(manifest) as emulator:
        engines = (OnEmulator(out, emulator), OnReference(out))
        loops = (open_loop(out, manifest, path, engine) for engine in engines)
        one, other = (loop.read(TOKENS) for loop in loops)
    cosine = float(one @ other / np.linalg.norm(one) / np.linalg.norm(other))
    return {
        "cosine": cosine,
        "error": float(np.abs(one - other).max() / np.abs(other).max()),
        "same_token": bool(one.argmax() == other.argmax()),
    }


def compare(out: Path, path: str, answer: Path) -> None:
    answer.write_text(json.dumps(agreement(out, path)))


def run_step(work: Path, path: str) -> Run:
    answer = work / f"{path}.json"
    command = [sys.executable, __file__, "--compare", work / "out", path, answer]
    measured = watched(command)
    return {**measured, **json.loads(answer.read_text())}


def parts_of(out: Path) -> dict[str, float]:
    """What was made: how many parts and bytes, and the least cosine with float."""
    manifest = json.loads((out / "manifest.json").read_bytes())
    parts = {n: p for n, p in manifest["parts"].items() if p["quantisation"] != "none"}
    files = [file for part in parts.values() for file in part["files"]]
    cosines = [
        value
        for file in files
        if file["graph"]
        for found in file["graph"]["cosine"].values()
        for value in found.values()
    ]
    size = sum(file["bytes"] for file in files if file["name"].endswith(".bin"))
    return {"parts": len(parts), "binaries_gb": size / 1e9, "least_cosine": min(cosines)}


def describe(found: dict) -> str:
    runs = found["runs"]
    minutes = sum(runs[name]["seconds"] for name in ("killed", "rest")) / 60
    peak = max(runs[name]["peak_mb"] for name in ("killed", "rest")) / 1e3
    rows = [
        ["both runs of the export, minutes", f"{minutes:.1f}", f"{GOALS['minutes']}"],
        ["its peak memory, all processes, GB", f"{peak:.2f}", f"{GOALS['gb']}"],
        ["parts compiled", found["parts"], ""],
        ["their context binaries, GB", f"{found['binaries_gb']:.2f}", ""],
        ["least cosine of a part's output with fp32", f"{found['least_cosine']:.4f}", ""],
    ]
    for path in ("text", "multimodal"):
        step = runs[path]
        rows += [
            [f"{path}: emulator and CPU reference, cosine", f"{step['cosine']:.7f}", ""],
            [f"{path}: greatest error over greatest logit", f"{step['error']:.2g}", ""],
            [f"{path}: the same token", "yes" if step["same_token"] else "no", "yes"],
            [f"{path}: minutes of both, from nothing", f"{step['seconds'] / 60:.1f}", ""],
            [f"{path}: peak memory, GB", f"{step['peak_mb'] / 1e3:.2f}", ""],
        ]
    return table(["", "measured", "goal"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="builtin/qwen2.5-3b")
    parser.add_argument("--work", type=Path, help="a folder to keep; its base is used if there")
    parser.add_argument("--compare", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.compare:
        out, path, answer = given.compare
        return compare(Path(out), path, Path(answer))
    work = (given.work or HERE / "work").resolve()
    work.mkdir(parents=True, exist_ok=True)
    try:
        prepare(given.model, work)
        runs = export(work)
        runs |= {path: run_step(work, path) for path in ("text", "multimodal")}
        found = {"model": given.model, **parts_of(work / "out"), "runs": runs}
        write_results(HERE, found, describe(found))
    finally:
        if not given.work:
            shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
