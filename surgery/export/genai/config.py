"""genai_config.json: what ONNX Runtime GenAI has to know of a graph and its search."""

from pathlib import Path
from typing import Any, Final

from surgery.model.loading import head_sizes, load_config
from surgery.model.source import ModelFiles
from surgery.storage.json_file import read_object

_TYPE: Final = "decoder"
"""The runtime's name for a decoder whose inputs and outputs the config names."""

_IDS: Final = ("bos_token_id", "eos_token_id", "pad_token_id")


def genai_config(files: ModelFiles, graph: str) -> dict[str, Any]:
    """Return the config of a decoder.

    Args:
        files: of the base.
        graph: file of the graph.
    """
    config = load_config(files.folder)
    heads, length = head_sizes(config), config.max_position_embeddings
    ids = {name: getattr(config, name, None) for name in _IDS} | _generation(files.folder)
    ends, pad = ids["eos_token_id"], ids["pad_token_id"]
    first = ends[0] if isinstance(ends, list) else ends
    return {
        "model": {
            "type": _TYPE,
            "bos_token_id": ids["bos_token_id"],
            "eos_token_id": ends,
            "pad_token_id": first if pad is None else pad,
            "vocab_size": config.vocab_size,
            "context_length": length,
            "decoder": {
                "session_options": {"provider_options": []},
                "filename": graph,
                "head_size": heads.width,
                "hidden_size": config.hidden_size,
                "num_attention_heads": heads.queries,
                "num_hidden_layers": config.num_hidden_layers,
                "num_key_value_heads": heads.keys,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "position_ids": "position_ids",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {"do_sample": False, "max_length": length, "past_present_share_buffer": False},
    }


def _generation(folder: Path) -> dict[str, Any]:
    """The ids of tokens in generation_config.json, which go before those of config.json."""
    file = folder / "generation_config.json"
    content = read_object(file) if file.is_file() else {}
    return {name: content[name] for name in _IDS if content.get(name) is not None}
