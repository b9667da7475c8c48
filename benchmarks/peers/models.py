"""A tiny random model of each type: four blocks, 32 wide, both kinds of attention where it mixes.

Sizes are the smallest that keep what makes a type special: grouped heads, a window shorter than the
prompt, windows and blocks without rotary embedding where the type mixes them.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

BLOCKS = 4
WINDOW = 4
_MIXED = {
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": WINDOW,
    "use_sliding_window": True,
}
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
_HEAD = {"head_dim": 8}
_EXPERTS = {"num_experts_per_tok": 2, "num_experts": 4, "moe_intermediate_size": 32}


@dataclass(frozen=True)
class Tiny:
    """What one type needs besides the common sizes.

    Args:
        config: its own fields.
        blocks: the path of its block list.
        lora: what PEFT is told to adapt.
        common: the fields that it shares with most.
    """

    config: dict[str, Any] = field(default_factory=dict)
    blocks: str = "model.layers"
    lora: tuple[str, ...] = ("q_proj", "v_proj")
    common: dict[str, Any] = field(default_factory=lambda: _COMMON)


_GPT2 = {
    **{key: _COMMON[key] for key in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")},
    **{"n_embd": 32, "n_layer": BLOCKS, "n_head": 4, "n_positions": 128, "n_inner": 64},
}
MODELS = {
    "llama": Tiny(),
    "mistral": Tiny({"sliding_window": WINDOW}),
    "qwen2": Tiny(_MIXED),
    "qwen3": Tiny({**_MIXED, **_HEAD}),
    "gemma2": Tiny({**_MIXED, **_HEAD}),
    "gemma3_text": Tiny({**_MIXED, **_HEAD}),
    "phi3": Tiny({"sliding_window": WINDOW}, lora=("qkv_proj",)),
    "smollm3": Tiny({**_MIXED, "no_rope_layers": [1, 0, 1, 0]}),
    "gpt_oss": Tiny({**_MIXED, **_HEAD, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "opt": Tiny({"ffn_dim": 64, "word_embed_proj_dim": 32}, blocks="model.decoder.layers"),
    "gpt_neox": Tiny(blocks="gpt_neox.layers", lora=("query_key_value",)),
    "gpt2": Tiny(blocks="transformer.h", lora=("c_attn",), common=_GPT2),
    "qwen3_moe": Tiny({**_HEAD, **_EXPERTS}),
    "mamba": Tiny({"state_size": 8}, blocks="backbone.layers", lora=("in_proj", "out_proj")),
}


def save_tiny(name: str, folder: Path) -> None:
    """Save a random model of the type, none of whose parameters has its neutral start value."""
    tiny = MODELS[name]
    config = AutoConfig.for_model(name, **{**tiny.common, **tiny.config})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
