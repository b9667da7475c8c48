"""How long does `surgery apply` take, and how much memory? See README.md.

    python benchmarks/apply/run.py [--rounds 5] [--model builtin/qwen2.5-3b] [--keep]

Makes a checkpoint of the model's shape (6.2 GB of random weights) under work/, makes the same
adapter from it with `surgery apply` and with transformers and peft, and copies the written file
with cp and dd, in turns. Writes results.json and the table in README.md, and removes work/.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

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
SOURCE, SAME, OUT = WORK / "source", WORK / "same.safetensors", WORK / "out"
CACHE = {"SURGERY_CACHE": str(WORK / "cache")}
WEIGHTS = "adapter_model.safetensors"
ARGUMENTS = ["apply", "genieblue_skip", f"model={SOURCE}", "--out", str(OUT)]
APPLY, FIRST, PARTS = "surgery apply", "surgery apply, first time", "surgery apply, in parts"
PEER, CP = "transformers + peft", "cp"
SYNCED, DIRECT = "cp, then sync of the file", "dd oflag=direct bs=16M"
COMMANDS = {
    APPLY: [*SURGERY, *ARGUMENTS],
    FIRST: [*SURGERY, *ARGUMENTS],
    PARTS: [sys.executable, str(Path(__file__).resolve()), "--parts"],
    PEER: [sys.executable, str(HERE / "peer.py"), str(SOURCE), str(OUT)],
    CP: ["cp", str(SAME), str(OUT)],
    SYNCED: ["sh", "-c", f"cp '{SAME}' '{OUT}' && sync '{OUT}'"],
    DIRECT: ["dd", f"if={SAME}", f"of={OUT}", "bs=16M", "oflag=direct"],
}


def run_once(method: str) -> Run:
    """Run one method as a process of its own, its output gone and its sources in the page cache."""
    remove_output()
    if method == FIRST:
        shutil.rmtree(WORK / "cache", ignore_errors=True)
    os.sync()
    keep_warm(SAME, *SOURCE.glob("*.safetensors"))
    run = run_child(COMMANDS[method], CACHE)
    written = OUT if OUT.is_file() else OUT / WEIGHTS
    assert abs(written.stat().st_size - SAME.stat().st_size) < 1 << 20
    return {**run, **(json.loads(run["stdout"]) if method == PARTS else {})}


def remove_output() -> None:
    if OUT.is_dir():
        shutil.rmtree(OUT)
    OUT.unlink(missing_ok=True)


def apply_in_parts() -> None:
    """Do what the command does, in this process; print the seconds of the splice and of all."""
    from time import perf_counter

    from surgery import load_recipe, plan_recipe
    from surgery.adapter import folder as adapter

    spent = 0.0
    write = adapter.write_safetensors

    def timed(*arguments, **options) -> None:
        nonlocal spent
        started = perf_counter()
        write(*arguments, **options)
        spent = perf_counter() - started

    adapter.write_safetensors = timed
    plan = plan_recipe(load_recipe("genieblue_skip", [f"model={SOURCE}"]), weights=True)
    started = perf_counter()
    adapter.write_adapter(plan, OUT)
    print(json.dumps({"write_adapter": perf_counter() - started, "splice": spent}))


def compare(ours: Path, theirs: Path) -> None:
    """Print what two adapters have in common, and stop where names or copies differ."""
    import torch
    from safetensors import safe_open

    with safe_open(ours / WEIGHTS, "pt") as a, safe_open(theirs / WEIGHTS, "pt") as b:
        assert sorted(a.keys()) == sorted(b.keys())
        copies = 0
        for name in a.keys():  # noqa: SIM118
            x, y = a.get_tensor(name), b.get_tensor(name)
            assert (x.dtype, x.shape) == (y.dtype, y.shape), name
            if ".lora_A." not in name:  # A is random in both
                assert torch.equal(x.view(torch.uint8), y.view(torch.uint8)), name
            copies += ".lora_" not in name
        print(json.dumps({"tensors": len(a.keys()), "copies_bit_equal": copies}))


def prepare(model: str) -> Run:
    """Make the checkpoint, and the adapter twice; compare both, and keep the file to copy."""
    shutil.rmtree(WORK, ignore_errors=True)
    make_checkpoint(model, SOURCE)
    kept = WORK / "kept"
    run_child(COMMANDS[APPLY], CACHE)
    OUT.rename(kept)
    run_child(COMMANDS[PEER])
    run = run_child([sys.executable, __file__, "--compare", kept, OUT])
    (kept / WEIGHTS).rename(SAME)
    remove_output()
    found = heavy_imports(*ARGUMENTS, env=CACHE)
    assert not found, f"surgery apply imported {found}"
    return json.loads(run["stdout"])


def ratios_of(runs: dict) -> dict[str, float]:
    ours = {key: median_of(runs[APPLY], key) for key in ("seconds", "peak_mb")}
    peer = {key: median_of(runs[PEER], key) for key in ("seconds", "peak_mb")}
    found = {
        "times_faster_than_peer": peer["seconds"] / ours["seconds"],
        "times_less_memory_than_peer": peer["peak_mb"] / ours["peak_mb"],
        "first_time_times_faster_than_peer": peer["seconds"] / median_of(runs[FIRST]),
    }
    for name in (CP, SYNCED, DIRECT):
        copy = median_of(runs[name])
        found[f"command over {name}"] = ours["seconds"] / copy
        found[f"splice alone over {name}"] = median_of(runs[PARTS], "splice") / copy
    return {name: round(value, 3) for name, value in found.items()}


def row(method: str, runs: list[Run], size: int, key: str = "seconds") -> list[str]:
    seconds = [run[key] for run in runs]
    median = median_of(runs, key)
    return [
        method,
        *(f"{value:.2f}" for value in (median, min(seconds), max(seconds))),
        f"{size / 1e9 / median:.2f}",
        f"{median_of(runs, 'cpu_seconds'):.1f}" if key == "seconds" else "",
        f"{max(run['peak_mb'] for run in runs):.0f}" if key == "seconds" else "",
    ]


def describe(runs: dict, same: Run, size: int) -> str:
    rows = [row(method, runs[method], size) for method in (APPLY, FIRST)]
    rows += [row("… of it: `write_adapter`", runs[PARTS], size, "write_adapter")]
    rows += [row("… of it: the splice alone", runs[PARTS], size, "splice")]
    rows += [row(method, runs[method], size) for method in (PEER, CP, SYNCED, DIRECT)]
    head = ["method", "median s", "min s", "max s", "GB/s", "CPU s", "peak MB"]
    ratios = [[name.replace("_", " "), f"{value:.2f}"] for name, value in ratios_of(runs).items()]
    said = (
        f"{size:,} bytes written. Both adapters hold the same {same['tensors']} tensor names, "
        f"types and shapes; the {same['copies_bit_equal']} copied tensors are equal bit for bit."
    )
    return f"{said}\n\n{table(head, rows)}\n\n{table(['ratio of medians', ''], ratios)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="builtin/qwen2.5-3b")
    parser.add_argument("--seed", type=int, default=0, help="of the order of turns")
    parser.add_argument("--dry", action="store_true", help="write no results")
    parser.add_argument("--parts", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--compare", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.parts:
        return apply_in_parts()
    if given.compare:
        return compare(*given.compare)
    try:
        same = prepare(given.model)
        methods = {name: (lambda name=name: run_once(name)) for name in COMMANDS}
        runs = take_turns(methods, given.rounds, given.seed)
        size = SAME.stat().st_size
        about = {"model": given.model, "rounds": given.rounds, "seed": given.seed, "bytes": size}
        result = {**about, **same, "ratios": ratios_of(runs), "medians": medians(runs)}
        text = describe(runs, same, size)
        print(text) if given.dry else write_results(HERE, {**result, "runs": runs}, text)
    finally:
        shutil.rmtree(WORK, ignore_errors=True)


if __name__ == "__main__":
    main()
