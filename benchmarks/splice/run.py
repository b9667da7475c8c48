"""How near to the disk's speed is the splice? See README.md.

    python benchmarks/splice/run.py [--rounds 7] [--chunk MiB] [--writers N]

Makes a checkpoint of Qwen2.5-3B's shape (6.2 GB of random bytes) under work/, writes nine of its
blocks (1.39 GB) with `surgery.splice`, with dd and with cp, in turns, and writes results.json and
the table in README.md. Removes work/ after itself.
"""

import argparse
import json
import os
import platform
import random
import re
import shutil
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
WORK = HERE / "work"
SOURCE, SAME, OUT = WORK / "source", WORK / "same.safetensors", WORK / "out.safetensors"
COPIED = range(3, 36, 4)
D, FFN, KV, VOCAB, BLOCKS = 2048, 11008, 256, 151936, 36
BLOCK = {
    "input_layernorm.weight": (D,),
    "mlp.down_proj.weight": (D, FFN),
    "mlp.gate_proj.weight": (FFN, D),
    "mlp.up_proj.weight": (FFN, D),
    "post_attention_layernorm.weight": (D,),
    "self_attn.k_proj.bias": (KV,),
    "self_attn.k_proj.weight": (KV, D),
    "self_attn.o_proj.weight": (D, D),
    "self_attn.q_proj.bias": (D,),
    "self_attn.q_proj.weight": (D, D),
    "self_attn.v_proj.bias": (KV,),
    "self_attn.v_proj.weight": (KV, D),
}
PEERS = {
    "dd oflag=direct bs=16M": ["dd", f"if={SAME}", f"of={OUT}", "bs=16M", "oflag=direct"],
    "cp": ["cp", str(SAME), str(OUT)],
    "cp, then sync of the file": ["sh", "-c", f"cp '{SAME}' '{OUT}' && sync '{OUT}'"],
}
METHODS = ["surgery.splice", *PEERS]


def make_source() -> None:
    """Write two shards and their index, of random bytes."""
    from surgery.splice import NewTensor, write_safetensors

    shapes = {"model.embed_tokens.weight": (VOCAB, D), "model.norm.weight": (D,)}
    for i in range(BLOCKS):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in BLOCK.items()}
    names = list(shapes)
    half = names.index("model.layers.23.input_layernorm.weight")
    SOURCE.mkdir(parents=True)
    shards = {
        f"model-{k}-of-2.safetensors": part
        for k, part in enumerate((names[:half], names[half:]), 1)
    }
    for shard, part in shards.items():
        tensors = [random_tensor(NewTensor, name, shapes[name]) for name in part]
        write_safetensors(SOURCE / shard, tensors)
    index = {"weight_map": {name: shard for shard, part in shards.items() for name in part}}
    (SOURCE / "model.safetensors.index.json").write_text(json.dumps(index))


def random_tensor(new, name: str, shape: tuple[int, ...]):
    count = 2
    for n in shape:
        count *= n
    return new(name, "BF16", shape, lambda: os.urandom(count))


def splice(out: Path, chunk: int | None, writers: int | None) -> None:
    """Do the job once in this process; print seconds and the peak of resident memory."""
    started = time.perf_counter()
    from surgery import transfer
    from surgery.checkpoint import read_checkpoint
    from surgery.splice import NewTensor, write_safetensors

    transfer.CHUNK_BYTES = (chunk << 20) if chunk else transfer.CHUNK_BYTES
    transfer.WRITERS = writers or transfer.WRITERS
    tensors = read_checkpoint(SOURCE).tensors
    new = []
    for i in COPIED:
        for name in BLOCK:
            source = tensors[f"model.layers.{i}.{name}"]
            new.append(NewTensor(f"copy.{source.name}", source.dtype, source.shape, source))
    write_safetensors(out, new)
    seconds = time.perf_counter() - started
    peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    print(json.dumps({"inside": seconds, "peak_mb": int(peak[1]) * 1024 / 1e6 if peak else 0}))


def run_once(method: str, cold: bool, tuning: list[str]) -> dict[str, float]:
    """Run one method as a process of its own, its output file gone and its source warm or cold."""
    OUT.unlink(missing_ok=True)
    os.sync()
    for file in [SAME, *SOURCE.glob("*.safetensors")]:
        settle(file, cold)
    command = PEERS.get(method, [sys.executable, __file__, "--once", *tuning])
    started = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=child_env())
    seconds = time.perf_counter() - started
    assert OUT.stat().st_size == SAME.stat().st_size
    return {"seconds": seconds, **(json.loads(done.stdout) if done.stdout.strip() else {})}


def child_env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def settle(file: Path, cold: bool) -> None:
    """Put a source file into the page cache, or out of it."""
    descriptor = os.open(file, os.O_RDONLY)
    if cold:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    else:
        while os.read(descriptor, 16 << 20):
            pass
    os.close(descriptor)


def measure(rounds: int, tuning: list[str]) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Take turns, in a new order each round, so that drifts of the machine hit all alike."""
    runs: dict = {state: {method: [] for method in METHODS} for state in ("warm", "cold")}
    for state in runs:
        for _ in range(rounds):
            for method in random.sample(METHODS, len(METHODS)):
                runs[state][method].append(run_once(method, state == "cold", tuning))
                print(state, method, runs[state][method][-1], flush=True)
    return runs


def summarise(runs: dict, size: int) -> str:
    lines = [
        "| source | method | median s | min s | max s | GB/s | x dd | peak MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for state, methods in runs.items():
        dd = statistics.median(r["seconds"] for r in methods["dd oflag=direct bs=16M"])
        for method, done in methods.items():
            seconds = [r["seconds"] for r in done]
            median = statistics.median(seconds)
            peak = max(r.get("peak_mb", 0) for r in done)
            memory = f"{peak:.0f}" if peak else ""
            lines.append(
                f"| {state} | {method} | {median:.2f} | {min(seconds):.2f} | {max(seconds):.2f} "
                f"| {size / 1e9 / median:.2f} | {median / dd:.2f} | {memory} |"
            )
    return "\n".join(lines)


def machine() -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores, {memory:.0f} GiB, Linux {platform.release()}, "
        f"Python {platform.python_version()}, ext4"
    )


def write_results(runs: dict, size: int, rounds: int) -> None:
    table = summarise(runs, size)
    print(table)
    when = datetime.now(UTC).date().isoformat()
    result = {"machine": machine(), "date": when, "bytes": size, "rounds": rounds, "runs": runs}
    (HERE / "results.json").write_text(json.dumps(result, indent=1) + "\n")
    readme = HERE / "README.md"
    said = f"{machine()}; {rounds} rounds; {size:,} bytes; {when}"
    text = f"<!-- results -->\n{said}\n\n{table}\n<!-- end -->"
    readme.write_text(
        re.sub("<!-- results -->.*<!-- end -->", lambda _: text, readme.read_text(), flags=re.S)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--chunk", type=int, help="MiB; try another size, and write no results")
    parser.add_argument("--writers", type=int, help="threads; likewise")
    parser.add_argument("--keep", action="store_true", help="leave work/ for the next run")
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.make:
        return make_source()
    if given.once:
        return splice(OUT, given.chunk, given.writers)
    if not SAME.exists():
        shutil.rmtree(WORK, ignore_errors=True)
        subprocess.run([sys.executable, __file__, "--make"], check=True, env=child_env())
        subprocess.run([sys.executable, __file__, "--once"], check=True, env=child_env())
        OUT.rename(SAME)
    tuning = [f"--{k}={v}" for k in ("chunk", "writers") if (v := getattr(given, k))]
    try:
        runs = measure(given.rounds, tuning)
        size = SAME.stat().st_size
        print(summarise(runs, size)) if tuning else write_results(runs, size, given.rounds)
    finally:
        if not given.keep:
            shutil.rmtree(WORK, ignore_errors=True)


if __name__ == "__main__":
    main()
