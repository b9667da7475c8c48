"""One process that trains one recipe on a model of real size, and says what memory that took.

    python benchmarks/train/process.py genieblue_skip FOLDER

FOLDER is a checkpoint such as benchmarks/checkpoint.py makes. One row of 16 tokens, so that
activations are next to nothing; what the allocator holds without use is given back before reading.
"""

import ctypes
import gc
import json
import sys
from pathlib import Path

import torch
from peer import peft_genieblue

from surgery.adapter.apply import apply_plan
from surgery.adapter.folder import load_base
from surgery.plan.planner import plan_recipe
from surgery.recipe.loading import load_recipe
from surgery.training.memory_estimate import training_memory

PEER = "peft genieblue_skip"
TOKENS = 16


def resident() -> int:
    """Bytes of this process that are in memory now."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def main() -> None:
    name, folder = sys.argv[1:]
    recipe = load_recipe("genieblue_skip" if name == PEER else name, [f"model={folder}"])
    plan = plan_recipe(recipe.model_copy(update={"stages": {}}), weights=True)
    warm_up()
    before = resident()
    base = load_base(folder).float()
    model = peft_genieblue(base) if name == PEER else apply_plan(plan, base)
    del base
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    ids = torch.arange(4, 4 + TOKENS)[None]
    batch = {"input_ids": ids, "labels": ids, "use_cache": False}
    if plan.is_routed:
        batch["image_mask"] = torch.arange(TOKENS)[None] < TOKENS // 2
    for _ in range(2):  # the second leaves gradients beside the moments that the first made
        optimizer.step()
        optimizer.zero_grad()
        model(**batch).loss.backward()
    found = {"measured": resident() - before, "predicted": training_memory(plan)[-1].total}
    print(json.dumps(found))


def warm_up() -> None:
    """Make torch load what it loads once: kernels, threads, the classes of the model."""
    base = load_base(str(plan_recipe(load_recipe("lora"), weights=True).files.folder))
    base(input_ids=torch.arange(4, 20)[None]).logits.sum().backward()


if __name__ == "__main__":
    main()
