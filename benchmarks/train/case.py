"""One process of benchmarks/train: every recipe's optimizer steps in turns. See README.md."""

import argparse
import json
import random
import statistics
import time
from typing import Any

import torch
from peer import peft_genieblue

from surgery.adapter.apply import apply_plan
from surgery.adapter.folder import load_base
from surgery.plan.planner import Plan, plan_recipe
from surgery.recipe.loading import load_recipe
from surgery.training.memory_estimate import training_memory

RECIPES = ("full_finetune", "lora", "genieblue_skip", "cogvlm_skip", "wings")
PEER = "peft genieblue_skip"


class Stepper:
    """A model with its optimizer, that takes one step at a time."""

    def __init__(self, name: str, rows: int, tokens: int) -> None:
        recipe = load_recipe("genieblue_skip" if name == PEER else name)
        recipe = recipe.model_copy(update={"stages": {}})  # wings: what its last stage trains
        self.plan: Plan = plan_recipe(recipe, weights=True)
        base = load_base(str(self.plan.files.folder)).float()
        self.model: Any = peft_genieblue(base) if name == PEER else apply_plan(self.plan, base)
        self.model.train()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(4, 2048, (rows, tokens), generator=generator)
        self.batch = {"input_ids": ids, "labels": ids, "use_cache": False}
        if self.plan.is_routed:
            self.batch["image_mask"] = (torch.arange(tokens) < tokens // 2).expand(rows, -1)

    def step(self) -> tuple[float, float]:
        """Return the seconds of one step: of the CPU, and of the clock on the wall."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.model(**self.batch).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.process_time() - cpu, time.perf_counter() - wall

    def memory(self) -> dict[str, int]:
        """Bytes of tensors after a backward pass, and what `surgery plan --train` predicts."""
        self.model(**self.batch).loss.backward()
        parameters = list(self.model.parameters())
        moments = (t for s in self.optimizer.state.values() for t in s.values() if t.ndim)
        held = (*parameters, *(p.grad for p in parameters if p.grad is not None), *moments)
        measured = sum(t.numel() * t.element_size() for t in held)
        self.optimizer.zero_grad()
        return {"measured": measured, "predicted": training_memory(self.plan)[-1].total}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--only", choices=[*RECIPES, PEER], help="for the memory of its process")
    given = parser.parse_args()
    torch.set_num_threads(1)
    names = [given.only] if given.only else [*RECIPES, PEER]
    steppers = {name: Stepper(name, given.rows, given.tokens) for name in names}
    order = random.Random(given.seed)
    for stepper in steppers.values():
        stepper.step()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for _ in range(given.rounds):
        for name in order.sample(names, len(names)):
            times[name].append(steppers[name].step())
    found = {
        name: {
            "cpu": [cpu for cpu, _ in times[name]],
            "wall": statistics.median(wall for _, wall in times[name]),
            **steppers[name].memory(),
        }
        for name in names
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
