"""Load a base from disk by the right auto class of transformers."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from surgery.model.meta_device import auto_class
from surgery.model.remote_code import register
from surgery.model.source import ModelFiles
from surgery.storage.json_file import read_object

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class HeadSizes(NamedTuple):
    """The attention heads of a decoder.

    Args:
        queries: Number of query heads.
        keys: Number of key and value heads.
        width: Size of one head.
    """

    queries: int
    keys: int
    width: int


def head_sizes(config: Any) -> HeadSizes:
    """Return the heads of a config, with what families leave out.

    Args:
        config: Config of a language model.
    """
    queries = int(config.num_attention_heads)
    keys = int(getattr(config, "num_key_value_heads", None) or queries)
    width = getattr(config, "head_dim", None) or config.hidden_size // queries
    return HeadSizes(queries, keys, int(width))


def load_base(folder: str, *, trust_remote_code: bool = False) -> "PreTrainedModel":
    """Load a model from safetensors, in the dtype that its tensors have on disk.

    A multimodal model is loaded complete, with its vision tower.
    """
    from transformers import AutoConfig

    register(str(ModelFiles(folder, Path(folder)).config().get("model_type")))
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    model: PreTrainedModel = auto_class(config).from_pretrained(
        folder, dtype="auto", use_safetensors=True, trust_remote_code=trust_remote_code
    )
    return model


def load_config(folder: Path) -> Any:
    """The config of a model's language model, with the defaults of transformers.

    Args:
        folder: Folder with a config.json.
    """
    from transformers import AutoConfig

    content = read_object(folder / "config.json")
    config = AutoConfig.for_model(content["model_type"]).from_dict(content)
    return config.get_text_config()
