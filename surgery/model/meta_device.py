"""Build a model without weights, from its config alone, on torch's meta device."""

import re
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.diagnostics.wording import named_line
from surgery.model.remote_code import register, remote_file
from surgery.model.source import ModelFiles

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_COUNTED: Final = re.compile(r"(^|_)(layers?|blocks?|depth|stages|experts|codebooks)$")
_MAX_MODULES: Final = 20_000


def meta_model(files: ModelFiles, trust_remote_code: bool = False) -> "PreTrainedModel":
    """Build a model from its config alone, on the meta device; a quantized one unpacked.

    Args:
        files: Files of the model.
        trust_remote_code: Whether the model may run its own Python code; False by default.

    Raises:
        SurgeryError: M104 and M105, where it can't be built.
    """
    import torch

    config = _config(files, trust_remote_code)
    quantization = config.__dict__.pop("quantization_config", None)
    try:
        dtype = config.get_text_config(decoder=True).dtype or config.dtype or torch.float32
        with torch.device("meta"):
            model = _decoder_of_a_composite(config) or auto_class(config).from_config(
                config, dtype=dtype, trust_remote_code=trust_remote_code
            )
    except Exception as error:  # a config may be wrong in as many ways as there are classes
        raise SurgeryError(_unbuildable(files, error)) from error
    model.config.quantization_config = quantization
    built: PreTrainedModel = model
    return built


def _refuse_huge_counts(content: dict[str, Any]) -> None:
    """Refuse a count of modules with which building would not end, at any depth of the config."""
    for name, value in content.items():
        if isinstance(value, dict):
            _refuse_huge_counts(value)
        elif _COUNTED.search(name) and type(value) in (int, float) and value > _MAX_MODULES:
            raise ValueError(f"`{name}` is {value:,}, and no model has as many")


def refuse_remote_code(files: ModelFiles, trust_remote_code: bool) -> None:
    """Refuse remote code; checked on each run, whatever is cached.

    Args:
        files: Files of the model.
        trust_remote_code: Whether the model may run its own Python code.

    Raises:
        SurgeryError: M105; M104 for a config that can't be read.
    """
    content = files.config()
    is_ours = remote_file(str(content.get("model_type"))) is not None
    if "auto_map" in content and not is_ours and not trust_remote_code:
        raise SurgeryError(needs_remote_code(files.source, "config.json"))


def _decoder_of_a_composite(config: Any) -> Any:
    """The decoder of a composite such as MusicGen, built from its part of the config.

    None for all others, for which the auto class takes the right part itself.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if "text_config" in config.sub_configs or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return None
    decoder = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    inner = config.get_text_config(decoder=True)
    fits = isinstance(config, decoder.config_class) or not isinstance(inner, decoder.config_class)
    return None if fits else decoder(inner)


def _config(files: ModelFiles, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    refuse_remote_code(files, trust_remote_code)
    content = files.config()
    register(str(content.get("model_type")))
    try:
        _refuse_huge_counts(content)
        return AutoConfig.from_pretrained(files.folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise SurgeryError(_unbuildable(files, error)) from error


def _unbuildable(files: ModelFiles, error: Exception) -> Diagnostic:
    return diagnostic(
        "M104.unbuildable",
        version=version("transformers"),
        source=files.source,
        reason=named_line(error),
        key="model",
    )


def auto_class(config: Any) -> Any:
    """The auto class of transformers that loads a decoder together with its vision tower."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
    from transformers.models.auto import modeling_auto as auto

    is_multimodal = type(config) in auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    is_causal = config.model_type in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    is_nested = config.get_text_config(decoder=True) is not config
    return (
        AutoModelForImageTextToText
        if is_multimodal and (is_nested or not is_causal)
        else AutoModelForCausalLM
    )


def needs_remote_code(source: str, file: str) -> Diagnostic:
    """The diagnostic for a model whose `file` names code that the user hasn't allowed."""
    return diagnostic("M105", source=source, file=file, key="model")
