"""Processors of the field that count images, tiles and tokens each in its own way.

Rows are compared with what the processor itself makes of a whole conversation at once.
"""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from test_chat_templates import SHAPES
from tiny_llava import PATCH, SIDE, write_images
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Metaspace
from transformers import (
    AutoTokenizer,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlavaNextImageProcessorPil,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
)

from surgery.data.base import Record, RecordLocation, Turn
from surgery.data.collator import Collator
from surgery.data.encoder import IGNORED, Encoder
from surgery.model.source import find_model

TILES = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]


def tokenizer(**named: str) -> Any:
    """The built-in one, with further tokens by name."""
    folder = find_model("builtin/tiny-qwen2").folder
    return AutoTokenizer.from_pretrained(folder, extra_special_tokens=named)


def llava_next() -> Any:
    square = {"height": SIDE, "width": SIDE}
    grids = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE], [SIDE, 3 * SIDE]]
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size=square, image_grid_pinpoints=grids
    )
    return LlavaNextProcessor(
        images,
        tokenizer(image_token="<image>"),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=SHAPES["llava-next"].template,
    )


def smolvlm() -> Any:
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 2 * SIDE}, max_image_size={"longest_edge": SIDE}
    )
    own = tokenizer(
        image_token="<image>",
        fake_image_token="<fake_token_around_image>",
        global_image_token="<global-img>",
        end_of_utterance_token="<end_of_utterance>",
    )
    own.add_special_tokens({"additional_special_tokens": TILES})
    return Idefics3Processor(images, own, image_seq_len=4, chat_template=SHAPES["smolvlm"].template)


def gemma3() -> Any:
    images = Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE}, image_seq_length=4)
    own = tokenizer(
        boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>"
    )
    return Gemma3Processor(images, own, image_seq_length=4, chat_template=SHAPES["gemma3"].template)


MADE = {"llava-next": llava_next, "smolvlm": smolvlm, "gemma3": gemma3}


@cache
def processor_of(name: str) -> Any:
    return MADE[name]()


def sentencepiece(scheme: str) -> Any:
    """A tokenizer of single characters that writes spaces as Llama 2's and Phi-3's do."""
    words = [*map(chr, range(33, 127)), "\u2581", "\n", "<unk>"]
    own = Tokenizer(BPE({word: at for at, word in enumerate(words)}, [], unk_token="<unk>"))
    own.pre_tokenizer = Metaspace(prepend_scheme=scheme)
    own.decoder = decoders.Metaspace(prepend_scheme=scheme)
    named = PreTrainedTokenizerFast(tokenizer_object=own, eos_token="</s>")
    tokens = ["<|user|>", "<|assistant|>", "<|end|>"]
    named.add_special_tokens({"additional_special_tokens": tokens})
    named.chat_template = SHAPES["phi3"].template
    return named


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_an_answer_begins_without_a_space_that_nobody_wrote(scheme: str, tmp_path: Path) -> None:
    own = sentencepiece(scheme)
    row = Encoder(own, 99).conversation(record(tmp_path))
    text = "<|user|>\nWhat?<|end|>\n<|assistant|>\nThat.<|end|>\n</s>"
    assert row.ids.tolist() == own(text, add_special_tokens=False)["input_ids"]
    learned = row.labels[row.labels != IGNORED]
    assert own.convert_ids_to_tokens(learned)[:5] == ["T", "h", "a", "t", "."]


def record(folder: Path, *images: str) -> Record:
    """A question about images."""
    write_images(folder)
    Image.new("RGB", (300, 60), (1, 2, 200)).save(folder / "wide.png")
    turns = [Turn("user", "<image>\n" * len(images) + "What?"), Turn("assistant", "That.")]
    return Record(RecordLocation(folder, 1), tuple(turns), tuple(folder / name for name in images))


@pytest.mark.parametrize("name", MADE)
def test_a_row_is_what_the_processor_makes_of_the_conversation(name: str, tmp_path: Path) -> None:
    shown = record(tmp_path, "red.png", "wide.png")
    row = Encoder(processor_of(name), 4096).conversation(shown)
    images = [[Image.open(file) for file in shown.images]]
    made = processor_of(name)(
        text=[SHAPES[name].shown], images=images, add_special_tokens=False, return_tensors="pt"
    )
    own = processor_of(name).tokenizer
    assert own.decode(row.ids) == own.decode(made["input_ids"][0])
    assert torch.equal(row.images["pixel_values"], made["pixel_values"])


@pytest.mark.parametrize("name", MADE)
def test_rows_of_other_pictures_are_a_batch(name: str, tmp_path: Path) -> None:
    encoder = Encoder(processor_of(name), 4096)
    records = [record(tmp_path, "red.png", "wide.png"), record(tmp_path, "blue.png")]
    rows = [encoder.conversation(each) for each in records]
    batch = Collator(0)([[row] for row in rows])
    asked = encoder.prompts([(each, 1) for each in records])
    for pixels in (batch["pixel_values"], asked["pixel_values"]):
        first, second = pixels.split([len(row.images["pixel_values"]) for row in rows])
        for row, found in zip(rows, (first, second), strict=True):
            made = row.images["pixel_values"]
            inside = found[tuple(slice(size) for size in made.shape)]
            assert torch.equal(inside, made)
            assert found.abs().sum() == made.abs().sum()
