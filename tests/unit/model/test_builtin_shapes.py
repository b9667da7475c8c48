"""The shapes without weights under `builtin/`: each builds, with exactly its parameters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

BUILTIN = Path(__file__).parents[3] / "surgery" / "model" / "builtin"
PARAMETERS = {
    "bluelm-3b": 2_714_667_520,
    "gemma-3-1b": 999_885_952,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "phi-3.5-mini": 3_821_079_552,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-3b": 3_085_938_688,
    "qwen3-4b": 4_022_468_096,
    "smollm2-1.7b": 1_711_376_384,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_shape_has_its_exact_parameter_count(name: str) -> None:
    """`parameters()` gives a tied matrix once, so the count is of unique parameters."""
    config = AutoConfig.from_pretrained(BUILTIN / name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", PARAMETERS)
def test_shape_says_where_it_comes_from(name: str) -> None:
    """`card.json` repeats the count and names the source; no file asks for remote code."""
    card = json.loads((BUILTIN / name / "card.json").read_text())
    config = json.loads((BUILTIN / name / "config.json").read_text())
    assert card["parameters"] == PARAMETERS[name]
    assert card["source"]
    assert card["checked"]
    assert card["inferred"] == (name == "bluelm-3b")
    assert "auto_map" not in config


def test_the_vision_tower_has_its_parameters_and_its_pooling_head() -> None:
    """The count of arXiv 2503.06019's tables; `card.json` repeats it."""
    folder = BUILTIN / "siglip-so400m-patch14-384"
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.from_pretrained(folder))
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert sum(sizes.values()) == json.loads((folder / "card.json").read_text())["parameters"]
    assert sum(sizes.values()) == 428_225_600
    head = sum(size for name, size in sizes.items() if name.startswith("head."))
    assert head == 428_225_600 - 412_987_248


def test_every_shape_is_listed_here() -> None:
    """A folder under `builtin/` that has a config and no weights is in the table above."""
    shapes = {
        path.parent.name
        for path in BUILTIN.glob("*/config.json")
        if not (path.parent / "model.safetensors").exists()
    }
    assert shapes == {*PARAMETERS, "siglip-so400m-patch14-384"}
