"""Names that PEFT takes for others when it puts adapters on a model or loads them.

PEFT converts adapters of older checkpoints to today's names, and can't distinguish them from
adapters of today: a LoRA there would be put elsewhere, or be lost on loading, with a warning at
most. Source: peft 0.21.2, utils/transformers_weight_conversion.py.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_OLD_EXPERTS: Final = {
    "mixtral": ("gate", "w1", "w2", "w3"),
    "qwen2_moe": ("gate", "gate_proj", "up_proj", "down_proj"),
}
"""Last names that PEFT takes for those of stacked experts anywhere in a model, by the name of the
model type's conversion."""


def renamed_by_peft(model: "PreTrainedModel") -> Callable[[str], str]:
    """Return a function from a module's full name to why PEFT takes it for another; mostly empty.

    Args:
        model: Model on any device.
    """
    from transformers import conversion_mapping

    patterns = getattr(conversion_mapping, "_MODEL_TO_CONVERSION_PATTERN", {})
    model_type: Any = model.config.model_type
    old = _OLD_EXPERTS.get(patterns.get(model_type, ""), ())
    lost = _lost_on_loading(model)

    def reason(name: str) -> str:
        if name in lost:
            return "has a name that PEFT changes when it loads an adapter"
        if name.rpartition(".")[2] in old:
            return "has a name that PEFT takes for the packed experts' on this model type"
        return ""

    return reason


def _lost_on_loading(model: "PreTrainedModel") -> frozenset[str]:
    """The linear modules of a model whose LoRA is renamed by PEFT's conversion."""
    import torch
    from peft import LoraConfig

    try:
        from peft.utils.transformers_weight_conversion import (
            convert_peft_adapter_state_dict_for_transformers as convert,
        )
    except ImportError:  # a PEFT that converts nothing
        return frozenset()
    linear = (n for n, module in model.named_modules() if isinstance(module, torch.nn.Linear))
    names = {f"base_model.model.{name}.lora_A.weight": name for name in linear}
    empty = {key: torch.empty(1, 1, device="meta") for key in names}
    found = convert(model, LoraConfig(), empty)
    return frozenset(name for key, name in names.items() if key not in found)
