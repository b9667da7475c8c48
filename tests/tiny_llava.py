"""A tiny random Llava with a processor and the built-in tokenizer, and data for it, for tests."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2Config,
)

from surgery.model.source import find_model

SIDE, PATCH = 28, 14
IMAGE_TOKENS = (SIDE // PATCH) ** 2
COLORS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220)}


def tokenizer() -> Any:
    """The built-in model's, of 2048 tokens, without a chat template."""
    return AutoTokenizer.from_pretrained(find_model("builtin/tiny-qwen2").folder)


def processor() -> Any:
    """Images of 28 x 28 in patches of 14: four tokens each."""
    size = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessorPil(size=size, crop_size=size)
    return LlavaProcessor(
        images,
        tokenizer(),
        patch_size=PATCH,
        image_token="<|image|>",
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
    )


def save_llava(folder: Path, blocks: int = 4) -> Path:
    """Save the model with its processor as a user finds them."""
    narrow = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    text = Qwen2Config(
        **narrow,
        vocab_size=2048,
        num_hidden_layers=blocks,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    vision = CLIPVisionConfig(**narrow, num_hidden_layers=3, image_size=SIDE, patch_size=PATCH)
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=3, vision_feature_layer=-1
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


def write_images(folder: Path) -> list[str]:
    """One plain image of each color; their names."""
    for name, color in COLORS.items():
        Image.new("RGB", (40, 30), color).save(folder / f"{name}.png")
    return [f"{name}.png" for name in COLORS]


def color_question(name: str) -> dict[str, Any]:
    """A record in LLaVA's form that asks for the color of an image."""
    turns = [
        {"from": "human", "value": "<image>\nWhat color is it?"},
        {"from": "gpt", "value": f"It is {name}."},
    ]
    return {"id": name, "image": f"{name}.png", "conversations": turns}


def write_lines(file: Path, records: Sequence[Any]) -> Path:
    """Write records as JSONL; a string as it is."""
    lines = (r if isinstance(r, str) else json.dumps(r) for r in records)
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file
