"""Names that PEFT takes for others when it puts adapters on a model or loads them.

PEFT brings adapters of older checkpoints to today's names, and can't tell them from adapters of
today: a LoRA there would land elsewhere, or be lost on loading, with a warning at most. Source:
peft 0.21.2, utils/transformers_weight_conversion.py.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_OLD_EXPERTS: Final = {
    "mixtral": ("gate", "w1", "w2", "w3"),
    "qwen2_moe": ("gate", "gate_proj", "up_proj", "down_proj"),
}
"""Last names that PEFT takes for those of packed experts, wherever they stand, by the conversion
that a model type takes part in."""


def renamed_by_peft(model: "PreTrainedModel") -> Callable[[str], str]:
    """Return a function from a module's full name to why PEFT takes it for another; empty mostly.

    Args:
        model: on any device.
    """
    from transformers import conversion_mapping
    from transformers.core_model_loading import WeightConverter, rename_source_key

    model_type: Any = model.config.model_type
    patterns = getattr(conversion_mapping, "_MODEL_TO_CONVERSION_PATTERN", {})
    old = _OLD_EXPERTS.get(patterns.get(model_type, ""), ())
    known = conversion_mapping.get_checkpoint_conversion_mapping(model_type) is not None
    transforms = conversion_mapping.get_model_conversion_mapping(model) if known else []
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    renamings = [t for t in transforms if not isinstance(t, WeightConverter)]

    def reason(name: str) -> str:
        key = f"base_model.model.{name}.lora_A.weight"
        if rename_source_key(key, renamings, converters)[0] != key:
            return "has a name that PEFT changes when it loads an adapter"
        if name.rpartition(".")[2] in old:
            return "has a name that PEFT takes for the packed experts' on this model type"
        return ""

    return reason
