"""The small trained model: it opens, and is as good as its card says on the text it names."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

FOLDER = Path(__file__).parents[2] / "surgery" / "model" / "builtin" / "tiny-qwen2"
LARGEST_FOLDER = 6_000_000  # bytes
FEWEST_BLOCKS = 12
BATCH = 16


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    """What the card was written from."""
    return dict(json.loads((FOLDER / "figures.json").read_text()))


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    """The model as saved; on one thread, as two wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield AutoModelForCausalLM.from_pretrained(FOLDER).eval()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """The tokenizer as a user opens it."""
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """The held-out documents."""
    lines = (FOLDER / "heldout.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines]


def test_folder_is_a_small_bf16_decoder_of_twelve_blocks(model: Any) -> None:
    """Size, depth and dtype that other tests and the docs rely on."""
    size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    assert size <= LARGEST_FOLDER
    assert model.config.model_type == "qwen2"
    assert model.config.num_hidden_layers >= FEWEST_BLOCKS
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_tokenizer_opens_as_it_was_trained(tokenizer: Any, texts: list[str], model: Any) -> None:
    """`AutoTokenizer` may rebuild a qwen2 tokenizer; ids equal those of `tokenizer.json` itself."""
    raw = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    for text in texts:
        ids = tokenizer(text, verbose=False)["input_ids"]
        assert ids == raw.encode(text).ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.eos_token_id == model.generation_config.eos_token_id


def test_heldout_text_is_the_one_on_the_card(figures: dict[str, Any]) -> None:
    """The sha256 is that of the committed bytes, in the figures and in the card."""
    digest = hashlib.sha256((FOLDER / "heldout.jsonl").read_bytes()).hexdigest()
    assert digest == figures["splits"]["heldout"]["sha256"]
    assert digest in (FOLDER / "README.md").read_text()


def test_heldout_perplexity_is_the_one_on_the_card(
    model: Any, tokenizer: Any, texts: list[str], figures: dict[str, Any]
) -> None:
    """Scored anew, one token after another's window, and far below every n-gram model's."""
    documents = [tokenizer(text, verbose=False)["input_ids"] for text in texts]
    losses = [loss for ids in documents for loss in _losses(model, [*ids, tokenizer.eos_token_id])]
    perplexity = math.exp(sum(losses) / len(losses))
    baselines = figures["baselines"]
    assert len(losses) == figures["heldout"]["tokens"]
    assert perplexity == pytest.approx(figures["heldout"]["perplexity"], rel=0.02)
    assert f"{figures['heldout']['perplexity']:.3f}" in (FOLDER / "README.md").read_text()
    assert perplexity < min(baselines["unigram"], baselines["unigram_topics"]) / 10
    assert perplexity < baselines["trigram"]


@torch.no_grad()
def _losses(model: Any, ids: list[int], window: int = 256, stride: int = 128) -> list[float]:
    """Negative log likelihood of each token but the first, with 128 to 255 tokens before it."""
    losses: list[float] = []
    starts = range(0, max(1, len(ids) - stride), stride)
    rows = [torch.tensor(ids[start : start + window]) for start in starts]
    for first in range(0, len(rows), BATCH):
        batch = torch.nn.utils.rnn.pad_sequence(rows[first : first + BATCH], batch_first=True)
        scores = model(batch, use_cache=False).logits.float().log_softmax(-1)
        taken = -scores[:, :-1].gather(2, batch[:, 1:, None])[..., 0]
        for start, row, line in zip(starts[first:], rows[first:], taken, strict=False):
            losses += line[len(losses) - start : len(row) - 1].tolist()
    return losses


def test_it_continues_a_prompt_with_words(model: Any, tokenizer: Any) -> None:
    """A greedy continuation is the one on the card, word for word at its start."""
    figures = json.loads((FOLDER / "figures.json").read_text())
    ids = tokenizer(figures["sample"]["prompt"], return_tensors="pt")["input_ids"]
    output = model.generate(ids, do_sample=False, max_new_tokens=8)
    text = tokenizer.decode(output[0], skip_special_tokens=True)
    assert figures["sample"]["text"].startswith(text)
