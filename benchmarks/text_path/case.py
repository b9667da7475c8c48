"""One case: time four models that share their weights, in turns. Started by run.py.

Usage: python benchmarks/text_path/case.py tiny|wide float32|bfloat16
"""

import argparse
import copy
import json
import random
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from time import perf_counter, thread_time
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from surgery import apply_plan, find_model, load_recipe, make_plan, read_anatomy, text_path
from surgery.adapter.side_files import adapter_config

CALLS = {
    "tiny": {"prefill": 24, "decode": 100, "generate": 6},
    "wide": {"prefill": 4, "decode": 40, "generate": 4},
}
"""Calls of each contender in each round."""
CPU, WALL = 0, 1
Seconds = tuple[float, float]
Times = dict[str, list[Seconds]]
BASE, AGAIN, TEXT, PEFT = "base", "base again", "text_path", "peft disable_adapter()"
PROMPT, NEW = 256, 16


@dataclass
class Contender:
    """A model, what holds it on its path, and its own cache."""

    model: Any
    held: Callable[[], AbstractContextManager[None]]
    cache: Any = None


def load(size: str, dtype: torch.dtype) -> Any:
    """The built-in tiny model, or 4 random blocks of Qwen2.5-0.5B's width with 2,048 words."""
    if size == "tiny":
        folder = find_model("builtin/tiny-qwen2").folder
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    config = AutoConfig.from_pretrained(find_model("builtin/qwen2.5-0.5b").folder)
    config.update({"num_hidden_layers": 4, "vocab_size": 2048})
    config.layer_types = config.layer_types[:4]
    config.bos_token_id = config.eos_token_id = None
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def twin(model: Any) -> Any:
    """Another model of the same tensors."""
    shared = {id(t): t for t in [*model.parameters(), *model.buffers()]}
    return copy.deepcopy(model, shared)


def contenders(base: Any) -> dict[str, Contender]:
    plan = make_plan(load_recipe("genieblue_skip"), read_anatomy(base))
    ours = apply_plan(plan, twin(base)).eval()
    options = {**adapter_config(plan), "inference_mode": False}
    config = LoraConfig(**{k: v for k, v in options.items() if k != "peft_type"})
    plain = get_peft_model(twin(base), config).eval()
    return {
        BASE: Contender(base, nullcontext),
        AGAIN: Contender(twin(base), nullcontext),
        TEXT: Contender(ours, partial(text_path, ours)),
        PEFT: Contender(plain, plain.disable_adapter),
    }


def prefill(of: Contender, ids: torch.Tensor) -> torch.Tensor:
    return of.model(input_ids=ids, use_cache=True, logits_to_keep=1).logits


def decode(of: Contender, ids: torch.Tensor) -> torch.Tensor:
    """One step after a prompt of 256 tokens; `reset` takes its token out of the cache again."""
    return of.model(input_ids=ids[:, :1], past_key_values=of.cache, use_cache=True).logits


def generate(of: Contender, ids: torch.Tensor) -> torch.Tensor:
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    return of.model.generate(
        input_ids=ids[:, :16], attention_mask=torch.ones_like(ids[:, :16]), **options
    )


WORK = {"prefill": prefill, "decode": decode, "generate": generate}


def timed(work: str, of: Contender, ids: torch.Tensor) -> tuple[Seconds, torch.Tensor]:
    """CPU and wall seconds of one call, without entering and leaving the path."""
    with of.held():
        started, cpu_started = perf_counter(), thread_time()
        result = WORK[work](of, ids)
        seconds = (thread_time() - cpu_started, perf_counter() - started)
    if work == "decode":
        of.cache.crop(-1)
    return seconds, result


def one_round(work: str, field: dict[str, Contender], ids: torch.Tensor, calls: int) -> Times:
    """Time each contender `calls` times, in a new order each time."""
    seconds: Times = {name: [] for name in field}
    for _ in range(calls):
        for name in random.sample(list(field), len(field)):
            seconds[name].append(timed(work, field[name], ids)[0])
    return seconds


def check_equal(work: str, field: dict[str, Contender], ids: torch.Tensor) -> None:
    """Warm up, and see that all give the base's numbers, bit for bit."""
    results = [timed(work, of, ids)[1] for of in field.values()]
    assert all(torch.equal(results[0], result) for result in results[1:]), work


def paired(seconds: Times, name: str, clock: int) -> list[float]:
    """Each call's seconds over those of the base's call beside it."""
    both = zip(seconds[name], seconds[BASE], strict=True)
    return [a[clock] / b[clock] for a, b in both]


def summary(rounds: list[Times], name: str) -> dict[str, Any]:
    """Medians over all calls, and over those of each round."""
    found: dict[str, Any] = {"calls": sum(len(seconds[name]) for seconds in rounds)}
    for key, clock in (("cpu", CPU), ("wall", WALL)):
        calls = [call[clock] for seconds in rounds for call in seconds[name]]
        ratios = [paired(seconds, name, clock) for seconds in rounds]
        found[key] = {
            "milliseconds": round(1e3 * statistics.median(calls), 4),
            "ratio": round(statistics.median(r for round_ in ratios for r in round_), 4),
            "rounds": [round(statistics.median(round_), 4) for round_ in ratios],
        }
    return found


def entering(of: Contender) -> float:
    """Microseconds to enter and leave the path."""

    def once() -> Iterator[float]:
        started = perf_counter()
        with of.held():
            pass
        yield perf_counter() - started

    return round(1e6 * statistics.median(next(once()) for _ in range(30)), 1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("size", choices=CALLS)
    parser.add_argument("dtype", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--scale", type=float, default=1)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    random.seed(given.seed)
    base = load(given.size, getattr(torch, given.dtype))
    field = contenders(base)
    torch.manual_seed(given.seed)
    ids = torch.randint(3, 2000, (1, PROMPT))
    found: dict[str, Any] = {}
    with torch.inference_mode():
        for of in field.values():
            with of.held():
                of.cache = of.model(input_ids=ids, use_cache=True).past_key_values
        for work, calls in CALLS[given.size].items():
            check_equal(work, field, ids)
            n = max(2, round(calls * given.scale))
            rounds = [one_round(work, field, ids, n) for _ in range(given.rounds)]
            found[work] = {name: summary(rounds, name) for name in field}
    cost = {name: entering(field[name]) for name in (TEXT, PEFT)}
    sys.stdout.write(json.dumps({"threads": 1, "work": found, "entering": cost}) + "\n")


if __name__ == "__main__":
    main()
