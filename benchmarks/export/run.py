"""How long does `surgery export --to hf` take, and how much memory? See README.md.

    python benchmarks/export/run.py [--rounds 5] [--model builtin/qwen2.5-3b]

Makes a checkpoint of the model's shape (6.2 GB of random weights) and a GenieBlue-Skip adapter of
it under work/, exports it with `surgery export` and with transformers and peft, and copies the
written files with cp and dd, in turns. Does the same without a peer for a smaller model, to compare
the memory. Writes results.json and the table in README.md, and removes work/.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from adapter import make_adapter
from checkpoint import make_checkpoint
from measure import (
    SURGERY,
    Run,
    heavy_imports,
    keep_warm,
    median_of,
    medians,
    run_child,
    table,
    take_turns,
    write_results,
)

HERE = Path(__file__).parent.resolve()
WORK = HERE / "work"
CACHE = {"SURGERY_CACHE": str(WORK / "cache")}
SOURCE, ADAPTER, SAME, OUT = (WORK / name for name in ("source", "adapter", "same", "out"))
SMALL, SMALL_ADAPTER = WORK / "small", WORK / "small_adapter"
HOW = ("--link", "--out", str(OUT))
EXPORT = [*SURGERY, "export", str(ADAPTER), *HOW]
KEEP, MERGE, PEER = "export --lora keep", "export --lora merge", "transformers + peft"
CP, SYNCED, DIRECT = "cp -r", "cp -r, then sync of the files", "dd oflag=direct bs=16M"
EACH = f"mkdir '{OUT}'; for file in '{SAME}'/*; do {{}}; done"
COMMANDS = {
    KEEP: [*EXPORT, "--lora", "keep"],
    MERGE: [*EXPORT, "--lora", "merge"],
    PEER: [sys.executable, str(HERE / "peer.py"), str(SOURCE), str(ADAPTER), str(OUT)],
    CP: ["cp", "-r", str(SAME), str(OUT)],
    SYNCED: ["sh", "-c", f"cp -r '{SAME}' '{OUT}' && sync '{OUT}'/*"],
    DIRECT: ["sh", "-c", EACH.format(f"dd if=$file of='{OUT}'/${{file##*/}} bs=16M oflag=direct")],
}
SMALLER = {
    f"{name}, small": [*SURGERY, "export", str(SMALL_ADAPTER), *HOW, "--lora", form]
    for name, form in ((KEEP, "keep"), (MERGE, "merge"))
}


def compare(ours: Path, theirs: Path, base: Path) -> None:
    """Print what two checkpoints have in common, and stop where more than rounding differs."""
    import torch
    from safetensors import safe_open

    def opened(folder: Path) -> dict:
        files = [safe_open(file, "pt") for file in sorted(folder.glob("*.safetensors"))]
        return {name: file for file in files for name in file.keys()}  # noqa: SIM118

    a, b, before = opened(ours), opened(theirs), opened(base)
    assert not {name for name in a.keys() ^ b.keys() if "lm_head" not in name}
    equal, changed, worst = 0, 0, 0.0
    names = sorted(a.keys() & b.keys())
    for name in names:
        x, y = a[name].get_tensor(name), b[name].get_tensor(name)
        assert (x.dtype, x.shape) == (y.dtype, y.shape), name
        changed += not torch.equal(x, before[name].get_tensor(name))
        equal += torch.equal(x, y)
        apart = (x.float() - y.float()).abs() / y.float().abs().clamp(min=2**-7)
        worst = max(worst, float(apart.max()))
    assert worst < 0.02, worst
    found = {"tensors": len(names), "changed": changed, "bit_equal": equal, "worst": worst}
    print(json.dumps(found))


def run_once(command: list[str]) -> Run:
    """Run one method as a process of its own, its output gone and its sources in the page cache."""
    remove_output()
    os.sync()
    small = str(SMALL_ADAPTER) in command
    folders = (SMALL, SMALL_ADAPTER) if small else (SOURCE, ADAPTER)
    if command[0] in ("cp", "sh"):
        folders = (SAME,)
    keep_warm(*(file for folder in folders for file in folder.glob("*.safetensors")))
    return run_child(command, CACHE)


def remove_output() -> None:
    shutil.rmtree(OUT, ignore_errors=True)


def prepare(model: str, small: str) -> Run:
    """Make checkpoints and adapters, export both ways and compare; keep the files to copy."""
    shutil.rmtree(WORK, ignore_errors=True)
    for source, folder, adapter in ((model, SOURCE, ADAPTER), (small, SMALL, SMALL_ADAPTER)):
        make_checkpoint(source, folder)
        make_adapter(folder, adapter)
    kept = WORK / "kept"
    run_child(COMMANDS[MERGE], CACHE)
    (OUT / "multimodal").rename(kept)
    remove_output()
    run_child(COMMANDS[PEER])
    run = run_child([sys.executable, __file__, "--compare", kept, OUT, SOURCE])
    remove_output()
    SAME.mkdir()
    for file in kept.glob("*.safetensors"):
        file.rename(SAME / file.name)
    found = heavy_imports(*COMMANDS[KEEP][len(SURGERY) :], env=CACHE)
    found += heavy_imports(*COMMANDS[MERGE][len(SURGERY) :], "--overwrite", env=CACHE)
    assert not found, f"surgery export imported {found}"
    return json.loads(run["stdout"])


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def ratios_of(runs: dict) -> dict[str, float]:
    found = {}
    for name in (KEEP, MERGE):
        found[f"{name}: times faster than peer"] = median_of(runs[PEER]) / median_of(runs[name])
        for copy in (CP, SYNCED, DIRECT):
            found[f"{name} over {copy}"] = median_of(runs[name]) / median_of(runs[copy])
        large, small = (median_of(runs[n], "peak_mb") for n in (name, f"{name}, small"))
        found[f"{name}: peak memory over the small model's"] = large / small
    return {name: round(value, 3) for name, value in found.items()}


def row(method: str, runs: list[Run], size: int) -> list[str]:
    seconds = [run["seconds"] for run in runs]
    median = median_of(runs)
    return [
        method,
        *(f"{value:.2f}" for value in (median, min(seconds), max(seconds))),
        f"{size / 1e9 / median:.2f}",
        f"{median_of(runs, 'cpu_seconds'):.1f}",
        f"{max(run['peak_mb'] for run in runs):.0f}",
    ]


def describe(runs: dict, same: Run, sizes: tuple[int, int]) -> str:
    rows = [row(name, runs[name], sizes[name in SMALLER]) for name in (*COMMANDS, *SMALLER)]
    head = ["method", "median s", "min s", "max s", "GB/s", "CPU s", "peak MB"]
    ratios = [[name, f"{value:.2f}"] for name, value in ratios_of(runs).items()]
    said = (
        f"{sizes[0]:,} bytes of weights written ({sizes[1]:,} for the small model). Both "
        f"checkpoints hold the same {same['tensors']} tensors, {same['bit_equal']} of them equal "
        f"bit for bit; {same['changed']} are not the base's. Numbers differ by "
        f"{100 * same['worst']:.2g} % at most."
    )
    return f"{said}\n\n{table(head, rows)}\n\n{table(['ratio of medians', ''], ratios)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="builtin/qwen2.5-3b")
    parser.add_argument("--small", default="builtin/qwen2.5-0.5b", help="to compare the memory")
    parser.add_argument("--seed", type=int, default=0, help="of the order of turns")
    parser.add_argument("--dry", action="store_true", help="write no results")
    parser.add_argument("--compare", nargs=3, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.compare:
        return compare(*given.compare)
    try:
        same = prepare(given.model, given.small)
        commands = {**COMMANDS, **SMALLER}
        methods = {n: (lambda command=c: run_once(command)) for n, c in commands.items()}
        runs = take_turns(methods, given.rounds, given.seed)
        sizes = size_of(SAME), size_of(SMALL)
        about = {"model": given.model, "small": given.small, "rounds": given.rounds}
        about |= {"seed": given.seed, "bytes": sizes[0], "small_bytes": sizes[1]}
        result = {**about, **same, "ratios": ratios_of(runs), "medians": medians(runs)}
        text = describe(runs, same, sizes)
        print(text) if given.dry else write_results(HERE, {**result, "runs": runs}, text)
    finally:
        shutil.rmtree(WORK, ignore_errors=True)


if __name__ == "__main__":
    main()
