"""A tiny config of any model type: sizes by the names of their fields, exceptions by a file.

Only what is small is passed to the config's class, so that it derives the rest (the width of a
head, the types of the layers) as it does for a real one.
"""

import re
import sys
from pathlib import Path
from typing import Any, Final

import yaml
from transformers import CONFIG_MAPPING, PreTrainedConfig

VOCABULARY: Final = 160
_FILE: Final = Path(__file__).with_name("overrides.yaml")
_OVERRIDES: Final[dict[str, dict[str, Any]]] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
_SIZES: Final = {  # the first name that matches tells; larger numbers become this one
    r"(^|_)vocab(ulary)?_size|^n_vocab$": VOCABULARY,
    r"^(text_|num_|n_)?(encoder_|decoder_|hidden_)?(layers?|blocks|depth)$": 4,
    r"^n_layers?$|^num_hidden_layers$": 4,
    r"(rope_head_dim|rotary_dim)$": 8,
    r"(head_dim|dim_head|d_kv|d_head|head_size|dim_per_head)$": 16,
    r"(key_value_heads|kv_heads|num_kv_heads|key_heads|n_group|n_groups)$": 2,
    r"mamba_n_heads$|mamba_num_heads$": 8,
    r"(heads|n_head|num_attn_heads)$": 4,
    r"^attn_layer_period$": 2,
    r"^attn_layer_offset$": 1,
    r"topk_group$": 1,
    r"(experts_per_tok(en)?|moe_k|moe_topk|top_k_experts|num_selected_experts|experts_top_k)$": 2,
    r"^(n|num|moe_num)(_local|_routed|_moe)?_experts$|^moe_num_experts$": 8,
    r"(lora_rank|lora_dim)$": 32,
    r"(intermediate|ffn|inner|mlp|feed_?forward|filter|expert).*(size|dim|width)$|^n_inner$": 96,
    r"^(d_ff|dim_ff|ffn_dim|(en|de)coder_ffn_dim|n_inner)$": 96,
    r"^(max_position_embeddings|n_positions|max_seq_len(gth)?|n_ctx)$": 256,
    r"^max_(source|target)_pos\w*$": 256,
    r"(window|window_size)$": 16,
    r"chunk_size$": 16,
    r"(hidden|embed(ding)?s?|model|proj(ection)?|attention_hidden|lstm|lru)_(size|dim|width)$": 64,
    r"^(d_model|n_embd|dim|emb_dim|hidden_dim|width|embed_dim|projection_dim|d_embed)$": 64,
}
_PATTERNS: Final = {re.compile(name): size for name, size in _SIZES.items()}
_KEYS: Final = ("num_key_value_heads", "num_kv_heads")
_SECTIONS: Final = {8: [3, 3, 2], 4: [1, 1, 2], 2: [0, 1, 1]}
_TOKEN: Final = re.compile(r"token_(id|index)s?$")
_SPECIAL: Final = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def tiny_config(model_type: str) -> PreTrainedConfig:
    """A config of four blocks or so, 64 wide, whose model builds in a second.

    Args:
        model_type: of transformers, such as `qwen2`.
    """
    config_class = CONFIG_MAPPING[model_type]
    default = config_class()
    fields = _shrunk(default, {})
    if hasattr(default, "is_decoder") and not default.is_encoder_decoder:
        fields["is_decoder"] = True
    return config_class(**_merged(fields, _OVERRIDES.get(model_type, {})))


def _shrunk(config: PreTrainedConfig, tokens: dict[str, int]) -> dict[str, Any]:
    """The fields of a config that must be smaller, those of inner configs among them.

    Args:
        config: with its default values.
        tokens: ids of special tokens by their names, the same in all inner configs.
    """
    values = config.to_dict()
    fields: dict[str, Any] = {}
    for name, value in values.items():
        inner = vars(config).get(name)
        if isinstance(inner, PreTrainedConfig):
            fields[name] = {"model_type": inner.model_type, **_shrunk(inner, tokens)}
        elif _TOKEN.search(name):
            fields |= _small_token(name, value, tokens)
        elif type(value) is int:
            fields |= _small_size(name, value)
    return fields | _heads(values, fields) | _turned(config, values)


def _heads(values: dict[str, Any], fields: dict[str, Any]) -> dict[str, int]:
    """As many heads of keys as of queries where that is so by default; turned heads as wide."""
    keys = [name for name in _KEYS if name in values and values[name] in _all_heads(values)]
    heads = dict.fromkeys(keys, 4)
    if "qk_rope_head_dim" in values and "head_dim" in values:
        heads["head_dim"] = fields.get("qk_rope_head_dim", values["qk_rope_head_dim"])
    if type(values.get("qk_head_dim")) is int:
        heads["qk_head_dim"] = sum(
            fields.get(name, values[name]) for name in ("qk_rope_head_dim", "qk_nope_head_dim")
        )
    return heads


def _all_heads(values: dict[str, Any]) -> list[Any]:
    return [values[name] for name in ("num_attention_heads", "n_head") if name in values]


def _turned(config: PreTrainedConfig, values: dict[str, Any]) -> dict[str, Any]:
    """Sections of positions in time, height and width that add up to half of a head."""
    rope = values.get("rope_parameters")
    module = sys.modules[type(config).__module__].__file__ or ""
    code = Path(module.replace("configuration_", "modeling_"))
    if not rope or not code.is_file() or "mrope_section" not in code.read_text(encoding="utf-8"):
        return {}
    share = rope.get("partial_rotary_factor", 1.0)
    return {"rope_parameters": {**rope, "mrope_section": _SECTIONS[int(8 * share)]}}


def _small_token(name: str, value: Any, tokens: dict[str, int]) -> dict[str, Any]:
    if name in _SPECIAL:
        return {name: _SPECIAL[name]}
    if type(value) is int and value >= 3:
        return {name: tokens.setdefault(name, VOCABULARY - 1 - len(tokens))}
    return {}


def _small_size(name: str, value: int) -> dict[str, int]:
    small = next((size for key, size in _PATTERNS.items() if key.search(name)), None)
    return {name: small} if small is not None and value > small else {}


def _merged(fields: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    merged = {**fields}
    for name, value in own.items():
        inner = merged.get(name)
        both = isinstance(value, dict) and isinstance(inner, dict)
        merged[name] = _merged(inner, value) if both else value
    return merged
