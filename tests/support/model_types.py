"""Which model types there are: every decoder that transformers can load."""

from transformers.models.auto import modeling_auto as auto


def causal_types() -> list[str]:
    """The model types of `AutoModelForCausalLM`."""
    return sorted(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def multimodal_types() -> list[str]:
    """The model types of `AutoModelForImageTextToText`."""
    return sorted(auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


def all_types() -> list[str]:
    """Both, each once."""
    return sorted({*causal_types(), *multimodal_types()})
