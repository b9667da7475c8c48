"""What does routing image tokens to experts cost? See README.md.

Usage: python benchmarks/routing/run.py [--rounds 3] [--cells forward:1:float32:1 ...]

Every contender is a decoder over the same weight tensors in this process; they take turns in a new
order for each round and each mix of tokens. Writes results.json and the tables in README.md.
"""

import argparse
import random
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent.parent))

import torch
from measure import table, write_results
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from surgery import apply_plan, load_recipe, make_plan, read_anatomy
from surgery.layers.expert import ExpertMatrix
from surgery.verification.context import share_tensors

HERE = Path(__file__).parent.resolve()
TOKENS, IMAGE = 1024, 3
FORMS = ("gather", "segments", "blend")
PLAIN, COGVLM = "plain", "cogvlm's way"
MIXES = {0: (1,), 25: (1, 4, 8), 50: (1, 4, 8), 75: (1, 4, 8), 100: (1,)}
SOME = {"all": MIXES, "few": {0: (1,), 50: (4,), 100: (1,)}, "two": {0: (1,), 50: (4,)}}
CELLS = (
    "forward:1:float32:all",
    "forward:1:bfloat16:few",
    "both:1:float32:few",
    "forward:8:float32:two",
)


class Masks:
    """Where image tokens are; CogVLM's code too makes the masks once and hands them down."""

    image: torch.Tensor
    text: torch.Tensor


class MaskedMatrix(nn.Module):
    """One matrix of CogVLM's attention, as its released `VisionExpertAttention` computes it."""

    def __init__(self, base: nn.Module, expert: nn.Module, masks: Masks) -> None:
        super().__init__()
        self.base, self.expert, self.masks = base, expert, masks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Each kind of token through its own."""
        out = x.new_empty(*x.shape[:-1], self.base.out_features)
        out[self.masks.image] = self.expert(x[self.masks.image])
        out[self.masks.text] = self.base(x[self.masks.text])
        return out


class MaskedMlp(nn.Module):
    """CogVLM's released `VisionExpertMLP`: a whole MLP for each kind of token."""

    def __init__(self, base: nn.Module, expert: nn.Module, masks: Masks) -> None:
        super().__init__()
        self.base, self.expert, self.masks = base, expert, masks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Each kind of token through its own."""
        out = torch.empty_like(x)
        out[self.masks.image] = self.expert(x[self.masks.image])
        out[self.masks.text] = self.base(x[self.masks.text])
        return out


def make_contenders(blocks: int, dtype: torch.dtype) -> tuple[dict[str, Any], Masks]:
    """The contenders by name; each trains the same copies beside the same frozen base."""
    config = AutoConfig.for_model(
        "qwen2",
        hidden_size=2048,
        intermediate_size=11008,
        num_attention_heads=16,
        num_key_value_heads=2,
        num_hidden_layers=blocks,
        vocab_size=128,
        max_position_embeddings=4096,
        rope_theta=1e6,
    )
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config, dtype=dtype)
    anatomy, made, first = read_anatomy(base), {}, {}
    for form in FORMS:
        options = [f"operations.experts.{o}" for o in (f"form={form}", f"image_token_id={IMAGE}")]
        model: Any = share_tensors(base)
        model = apply_plan(make_plan(load_recipe("cogvlm_full", options), anatomy), model)
        for name, module in model.named_modules():
            if isinstance(module, ExpertMatrix):
                first.setdefault(name, module.expert["default"])
                module.expert["default"] = first[name]
        made[form] = model
    copies = {name.removeprefix("base_model.model."): m for name, m in first.items()}
    masks = Masks()
    made[PLAIN] = with_copies(share_tensors(base), copies)
    made[COGVLM] = as_cogvlm(share_tensors(base), with_copies(share_tensors(base), copies), masks)
    for model in made.values():
        model.enable_input_require_grads()  # else a prompt of text alone has no backward
    return made, masks


def with_copies(model: Any, copies: dict[str, nn.Module]) -> Any:
    """Plain blocks whose matrices are the copies: what all tokens cost with no routing."""
    model.requires_grad_(False)
    for name, module in copies.items():
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, module)
    return model


def as_cogvlm(model: Any, trained: Any, masks: Masks) -> Any:
    model.requires_grad_(False)
    for block, other in zip(model.model.layers, trained.model.layers, strict=True):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            pair = getattr(block.self_attn, name), getattr(other.self_attn, name)
            setattr(block.self_attn, name, MaskedMatrix(*pair, masks))
        block.mlp = MaskedMlp(block.mlp, other.mlp, masks)
    return model


def make_prompt(percent: int, runs: int) -> torch.Tensor:
    """Ids (1, TOKENS) with image tokens in so many even runs, each behind some text."""
    ids = torch.full((1, TOKENS), IMAGE + 1)
    stretch = TOKENS // runs
    images = stretch * percent // 100
    for run in range(runs):
        end = (run + 1) * stretch
        ids[0, end - images : end] = IMAGE
    return ids


def time_one(model: Any, ids: torch.Tensor, masks: Masks, *, backward: bool) -> float:
    masks.image, masks.text = ids == IMAGE, ids != IMAGE
    started = time.perf_counter()
    with torch.set_grad_enabled(backward):
        logits = model(input_ids=ids, use_cache=False).logits
    if backward:
        logits.sum().backward()
    seconds = time.perf_counter() - started
    for parameter in model.parameters():
        parameter.grad = None
    return seconds


def run_cell(cell: str, rounds: int, order: random.Random) -> list[dict[str, Any]]:
    work, blocks, dtype, mixes = cell.split(":")
    made, masks = make_contenders(int(blocks), getattr(torch, dtype))
    points = [(p, r) for p, rs in SOME[mixes].items() for r in rs]
    found = []
    for percent, runs in points:
        ids, times = make_prompt(percent, runs), {name: [] for name in made}
        for model in made.values():
            time_one(model, ids, masks, backward=work == "both")
        for _ in range(rounds):
            for name in order.sample(list(made), len(made)):
                seconds = time_one(made[name], ids, masks, backward=work == "both")
                times[name].append(round(seconds, 4))
        found.append({"cell": cell, "percent": percent, "runs": runs, "seconds": times})
        print(cell, percent, runs, {n: min(t) for n, t in times.items()}, flush=True)
    return found


def describe(points: list[dict[str, Any]]) -> str:
    rows = []
    for point in points:
        work, blocks, dtype, _ = point["cell"].split(":")
        best = {name: min(times) for name, times in point["seconds"].items()}
        middle = {name: statistics.median(t) for name, t in point["seconds"].items()}
        ratios = [
            f"{best[n] / best[PLAIN]:.2f} ({middle[n] / middle[PLAIN]:.2f})"
            for n in (*FORMS, COGVLM)
        ]
        what = "forward" if work == "forward" else "forward + backward"
        mix = f"{point['percent']} % in {point['runs']}"
        rows.append([what, blocks, dtype, mix, f"{1000 * best[PLAIN]:.0f}", *ratios])
    head = ["work", "blocks", "type", "image tokens in runs", "plain, ms", *FORMS, COGVLM]
    return table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the order of turns")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cells", nargs="*", default=CELLS, help="work:blocks:type:all|few|two")
    parser.add_argument("--dry", action="store_true", help="write no results")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(given.threads)
    order = random.Random(given.seed)
    about = {"rounds": given.rounds, "seed": given.seed, "threads": given.threads}
    points: list[dict[str, Any]] = []
    for cell in given.cells:
        points += run_cell(cell, given.rounds, order)
        text = describe(points)
        print(text) if given.dry else write_results(HERE, {**about, "points": points}, text)


if __name__ == "__main__":
    main()
