"""Tiny random models of several families, and recipes for them, for tests of every folder."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from surgery.adapter.apply import apply_plan
from surgery.model.numerics import Sums, frozen
from surgery.model.reader import read_anatomy
from surgery.plan.planner import Plan, make_plan
from surgery.recipe.loading import load_recipe

BLOCKS = 4
_COMMON = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_OWN: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "llama": {},
    "gemma3_text": {"head_dim": 8, "sliding_window": 8},
    "phi3": {},
    "gpt2": {
        "n_embd": 32,
        "n_layer": BLOCKS,
        "n_head": 4,
        "n_positions": 128,
        "n_inner": 64,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    },
}
FAMILIES = tuple(_OWN)
_MOE = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
_CONVERTED: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"head_dim": 8, "num_experts": 4, **_MOE},
    "mixtral": {"head_dim": 8, "num_local_experts": 4},
    "gpt_oss": {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "deepseek_v3": {
        **_MOE,
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
    },
}
CONVERTED = tuple(_CONVERTED)
"""Families with stacked experts in memory; all but gpt_oss store them one by one."""


def tiny_config(family: str = "qwen2", **changed: Any) -> Any:
    """A config of four blocks, 32 wide, that builds in milliseconds."""
    common = {"pad_token_id": 0, "vocab_size": 128, "eos_token_id": 2, "bos_token_id": 1}
    common = common if family == "gpt2" else _COMMON
    own = {**_OWN, **_CONVERTED}.get(family, {})
    return AutoConfig.for_model(family, **{**common, **own, **changed})


def tiny_model(
    family: str = "qwen2", dtype: torch.dtype = torch.float32, seed: int = 0, **changed: Any
) -> Any:
    """A random model in evaluation mode; the generator of the caller is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(family, **changed), dtype=dtype)
    return model.eval()


def save_tiny(folder: Path, family: str = "qwen2", *, shards: bool = False, **how: Any) -> Path:
    """Save such a model as transformers does, in one file or in several."""
    size = "40KB" if shards else "5GB"
    tiny_model(family, **how).save_pretrained(folder, max_shard_size=size)
    return folder


def without_prefix(folder: Path, prefix: str) -> Path:
    """Store such a model under names without the prefix that transformers adds."""
    file = folder / "model.safetensors"
    named = {name.removeprefix(prefix): tensor for name, tensor in load_file(file).items()}
    save_file(named, file, {"format": "pt"})
    return folder


def planned(model: Any, recipe: str = "genieblue_skip", *overrides: str) -> Plan:
    """A recipe's plan for a model in memory."""
    return make_plan(load_recipe(recipe, overrides), read_anatomy(model))


def applied(recipe: str = "genieblue_skip", *overrides: str, **how: Any) -> Any:
    """A tiny model that a recipe was applied to, perturbed so that its paths differ."""
    model = tiny_model(**how)
    return perturbed(apply_plan(planned(model, recipe, *overrides), model))


def perturbed(model: Any) -> Any:
    """The model itself, with noise added to all that it trains."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.05 * noise.to(parameter.dtype))
    return model


def perturbed_adapter(folder: Path, base: Path, recipe: str, *overrides: str) -> Path:
    """An adapter whose weights are perturbed, as training would; its folder."""
    from surgery.adapter.folder import load_base, save_adapter
    from surgery.plan.planner import plan_recipe
    from surgery.recipe.loading import load_recipe

    plan = plan_recipe(load_recipe(recipe, [f"model={base}", *overrides]), weights=True)
    save_adapter(plan, perturbed(apply_plan(plan, load_base(str(base)))), folder)
    return folder


def shallow(folder: Path) -> Path:
    """The first two blocks of the built-in model, fp32, with its tokenizer; their folder."""
    from surgery.adapter.folder import load_base
    from surgery.model.source import find_model

    source = find_model("builtin/tiny-qwen2").folder
    model: Any = load_base(str(source)).float()
    model.model.layers = model.model.layers[:2]
    model.config.update({"num_hidden_layers": 2, "layer_types": model.config.layer_types[:2]})
    model.save_pretrained(folder)
    for file in source.glob("token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def greedy(model: Any, ids: list[int], steps: int) -> list[int]:
    """The likeliest tokens by torch, without a cache and without an end."""
    known = list(ids)
    with torch.no_grad():
        for _ in range(steps):
            known.append(int(model(torch.tensor([known])).logits[0, -1].argmax()))
    return known[len(ids) :]


def trained_adapter(recipe: str, folder: Path, *overrides: str) -> Path:
    """An adapter of the built-in model, trained for a few steps on one sentence; its folder."""
    from surgery.recipe.loading import load_recipe
    from surgery.training.train import train_recipe

    data = folder / "talk.jsonl"
    row = json.dumps({"text": "Bananas are yellow and they are round. " * 3})
    data.write_text(f"{row}\n" * 8)
    few = ("batch=4", "length=64", "steps=8", "rate=1e-2", "log_every=4", "save_every=4")
    train_recipe(load_recipe(recipe, [f"data={data}", *few, *overrides]), folder / "adapter")
    return folder / "adapter"


def computed(model: Any, *args: Any, **inputs: Any) -> torch.Tensor:
    """Logits under the one condition that all are compared in: no weight requires gradients."""
    with frozen(model):
        logits: torch.Tensor = model(*args, **inputs).logits
    return logits


def is_rounding(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether logits of a tiny model are the same, its weights elsewhere in memory."""
    return Sums(wanted.dtype, BLOCKS, width=128).compare(found, wanted).is_rounding


def tokens(rows: int = 2, length: int = 7, seed: int = 0) -> torch.Tensor:
    """Token ids (rows, length) without the special ones."""
    return torch.randint(3, 128, (rows, length), generator=torch.Generator().manual_seed(seed))
