"""What llama.cpp calls and computes otherwise than transformers, by model type.

Source: llama.cpp, `src/llama-arch.cpp`, `src/models/` and `docs/development/HOWTO-add-model.md`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.model.loading import head_sizes

if TYPE_CHECKING:
    from gguf import GGUFWriter

Values = NDArray[np.float32]

_GEMMA_PERIOD: Final = 6
"""Blocks of Gemma 3 from one with full attention to the next; llama.cpp knows no other number."""

_SUFFIX: Final = re.compile(r"(.*)\.(weight|bias)")


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp stores a model type.

    Args:
        name: Name in GGUF, such as `qwen2`.
        interleaves: Whether rotary pairs are neighbors in q and k, where transformers has halves.
        adds_one: Whether a norm's weight is stored plus one, as transformers adds it in the model.
    """

    name: str
    interleaves: bool = False
    adds_one: bool = False


ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "llama": Architecture("llama", interleaves=True),
    "mistral": Architecture("llama", interleaves=True),
    "gemma3_text": Architecture("gemma3", adds_one=True),
    "phi3": Architecture("phi3"),
}


class Decoder:
    """A decoder as llama.cpp stores it.

    Args:
        config: Config of transformers, of the language model alone.

    Raises:
        SurgeryError: A630 for a model type, or a setting of it, that isn't written.
    """

    def __init__(self, config: Any) -> None:
        self.config = config
        found = ARCHITECTURES.get(config.model_type)
        if found is None:
            known = list(ARCHITECTURES)
            raise SurgeryError(
                diagnostic("A630.model_type", model_type=config.model_type, known=known)
            )
        self.architecture = found
        self._heads = head_sizes(config)
        self._rope: dict[str, Any] = _full_rope(config)
        reason = _unwritten(config, self._rope, self._heads.width)
        if reason:
            raise SurgeryError(
                diagnostic("A630.setting", model_type=config.model_type, reason=reason)
            )
        from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

        arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == found.name)
        self._names = get_tensor_name_map(arch, config.num_hidden_layers)

    def name(self, name: str) -> str | None:
        """Name in GGUF of a tensor in memory; None where llama.cpp has no such tensor."""
        found = _SUFFIX.fullmatch(name)
        stem = self._names.get_name(found[1]) if found else None
        return f"{stem}.{found[2]}" if found and stem else None

    def transformed(self, name: str, values: Values) -> Values:
        """The values of a tensor as llama.cpp takes them.

        Args:
            name: Name in memory.
            values: Its values, in the shape that transformers has.
        """
        if self.architecture.adds_one and name.endswith("norm.weight"):
            return values + np.float32(1)
        return self.output_rows(name, values)

    def output_rows(self, name: str, values: Values) -> Values:
        """The rows of a matrix, or of LoRA's B on it, in the order of its outputs in llama.cpp."""
        heads = {"q_proj": self._heads.queries, "k_proj": self._heads.keys}
        count = heads.get(name.rsplit(".", 2)[-2]) if "." in name else None
        if not self.architecture.interleaves or count is None:
            return values
        halves = values.reshape(count, 2, -1, *values.shape[1:])
        return halves.swapaxes(1, 2).reshape(values.shape)

    def describe(self, writer: "GGUFWriter") -> None:
        """Add the model's sizes and settings to a GGUF file's metadata."""
        config, heads = self.config, self._heads
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(heads.queries)
        writer.add_head_count_kv(heads.keys)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_key_length(heads.width)
        writer.add_value_length(heads.width)
        writer.add_vocab_size(config.vocab_size)
        writer.add_rope_dimension_count(heads.width)
        writer.add_rope_freq_base(float(self._rope["rope_theta"]))
        if self._rope["rope_type"] == "linear":
            from gguf import RopeScalingType

            writer.add_rope_scaling_type(RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(float(self._rope["factor"]))
        if self.architecture.name == "gemma3":
            writer.add_sliding_window(config.sliding_window)

    def extra_tensors(self) -> dict[str, Values]:
        """Tensors that transformers computes from the config, such as Llama 3's `rope_freqs`."""
        if self._rope["rope_type"] != "llama3":
            return {}
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](self.config, None)
        exponents = np.arange(0, self._heads.width, 2, dtype=np.float32) / self._heads.width
        plain = 1.0 / np.float32(self._rope["rope_theta"]) ** exponents
        return {"rope_freqs.weight": (plain / scaled.numpy()).astype(np.float32)}


def _full_rope(config: Any) -> dict[str, Any]:
    """The rotary settings of full attention, which one kind of block may not share."""
    rope = dict(config.rope_parameters or {})
    return dict(rope.get("full_attention", rope))


def _unwritten(config: Any, rope: Mapping[str, Any], head_dim: int) -> str:
    """Why llama.cpp would compute otherwise with this config; empty where it doesn't."""
    activation = "gelu_pytorch_tanh" if config.model_type == "gemma3_text" else "silu"
    found = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", activation)
    if found != activation:
        return f"its activation is {found}, and llama.cpp computes {activation}"
    kind = rope.get("rope_type", "default")
    if kind not in ("default", "linear", "llama3"):
        return f"its rotary embeddings are scaled by `{kind}`"
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        return "its rotary embeddings cover a part of each head"
    if config.model_type == "gemma3_text":
        return _gemma_unwritten(config, head_dim)
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None) if kinds is None else None
    is_sliding = window is not None and window < config.max_position_embeddings
    if is_sliding or set(kinds or ()) - {"full_attention"}:
        return "it has sliding attention"
    return ""


def _gemma_unwritten(config: Any, head_dim: int) -> str:
    full = [kind == "full_attention" for kind in config.layer_types]
    if full != [(i + 1) % _GEMMA_PERIOD == 0 for i in range(len(full))]:
        return f"llama.cpp takes each {_GEMMA_PERIOD}th block of Gemma 3 for full attention"
    if config.query_pre_attn_scalar != head_dim:
        return "its attention scores are scaled by another number than the head's width"
    softcap = config.attn_logit_softcapping or config.final_logit_softcapping
    if softcap or getattr(config, "use_bidirectional_attention", False):
        return "its attention or its logits are not those of a released Gemma 3"
    local = config.rope_parameters.get("sliding_attention", {})
    is_plain = local.get("rope_type", "default") == "default"
    if not is_plain or local.get("rope_theta", 10_000.0) != 10_000.0:
        return "its sliding attention has other rotary embeddings than a rope_theta of 10,000"
    return ""
