"""Measures the saved tiny model and writes its figures and its card, for `train_tiny_qwen2.py`."""

from __future__ import annotations

import json
import math
import platform
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tiny_qwen2_corpus import DEV_TOPICS, HELDOUT_TOPICS, OVERLAP_WORDS, Corpus, Document, sha256

WINDOW, STRIDE = 256, 128  # tokens; each token but a document's first is scored exactly once
LONG_WINDOW = 1024
BATCH = 16
IGNORED = -100
PROMPT = "The statement"
SAMPLE_TOKENS = 160

Figures = dict[str, Any]
Ids = list[int]


def encode(tokenizer: Any, documents: Sequence[Document]) -> list[Ids]:
    """Token ids of each document, from its `<|bos|>` to its `<|endoftext|>`."""
    end = [tokenizer.eos_token_id]
    return [tokenizer(document.text, verbose=False)["input_ids"] + end for document in documents]


@torch.no_grad()
def score(model: Any, documents: Sequence[Ids], window: int = WINDOW) -> float:
    """Mean negative log likelihood in nats a token, over windows that overlap by half."""
    rows = [row for ids in documents for row in _windows(ids, window)]
    total, count = 0.0, 0
    for start in range(0, len(rows), BATCH):
        ids, labels = map(torch.tensor, zip(*rows[start : start + BATCH], strict=True))
        logits = model(ids, use_cache=False).logits[:, :-1].float()
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
        )
        total, count = total + losses.item(), count + int((labels[:, 1:] != IGNORED).sum())
    return total / count


def _windows(ids: Ids, window: int) -> Iterator[tuple[Ids, Ids]]:
    """Padded (ids, labels); a label is `IGNORED` where the window before has scored the token."""
    done = 1
    for start in range(0, max(1, len(ids) - window // 2), window // 2):
        part = ids[start : start + window]
        fresh = done - start
        labels = [IGNORED] * fresh + part[fresh:]
        padding = window - len(part)
        yield part + [0] * padding, labels + [IGNORED] * padding
        done = start + len(part)


class NGram:
    """An n-gram model with Witten-Bell interpolation down to an add-one unigram model."""

    def __init__(self, documents: Sequence[Ids], order: int, vocabulary: int) -> None:
        """Counts the runs of up to `order` tokens that end after a document's first token."""
        self.order, self.vocabulary = order, vocabulary
        self.runs: Counter[tuple[int, ...]] = Counter()
        for ids in documents:
            for end in range(1, len(ids)):
                self.runs.update(tuple(ids[end - n : end + 1]) for n in range(min(order, end + 1)))
        self.totals: Counter[tuple[int, ...]] = Counter()
        self.kinds: Counter[tuple[int, ...]] = Counter()
        for run, count in self.runs.items():
            self.totals[run[:-1]] += count
            self.kinds[run[:-1]] += 1

    def probability(self, context: Ids, token: int) -> float:
        """The probability of `token` after `context`, of which the last `order - 1` ids count."""
        result = (self.runs[(token,)] + 1) / (self.totals[()] + self.vocabulary)
        for n in range(1, min(self.order, len(context) + 1)):
            history = tuple(context[-n:])
            if total := self.totals[history]:
                kinds = self.kinds[history]
                result = (self.runs[(*history, token)] + kinds * result) / (total + kinds)
        return result

    def score(self, documents: Sequence[Ids]) -> float:
        """Mean negative log likelihood in nats a token, of the same tokens that `score` counts."""
        losses = [
            -math.log(self.probability(ids[max(0, end - self.order) : end], ids[end]))
            for ids in documents
            for end in range(1, len(ids))
        ]
        return sum(losses) / len(losses)


def measure(folder: Path, corpus: Corpus, training: Figures) -> Figures:
    """Every figure of the card, of the weights as saved in `folder`."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    heldout = encode(tokenizer, corpus.heldout)
    return {
        "format_version": 1,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(model.dtype).removeprefix("torch."),
        "window": WINDOW,
        "stride": STRIDE,
        "heldout": _held_out(model, heldout, corpus),
        "dev": {"perplexity": math.exp(score(model, encode(tokenizer, corpus.dev)))},
        "baselines": _baselines(tokenizer, corpus, heldout),
        "splits": _splits(tokenizer, corpus),
        "dropped_paragraphs": corpus.dropped,
        "sample": {"prompt": PROMPT, "text": _continue(model, tokenizer)},
        "training": training,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _held_out(model: Any, heldout: list[Ids], corpus: Corpus) -> Figures:
    tokens = sum(len(ids) - 1 for ids in heldout)
    size = sum(len(document.text.encode()) for document in corpus.heldout)
    loss = score(model, heldout)
    return {
        "tokens": tokens,
        "bytes": size,
        "perplexity": math.exp(loss),
        "bits_per_byte": loss * tokens / size / math.log(2),
        "perplexity_long_window": math.exp(score(model, heldout, LONG_WINDOW)),
    }


def _baselines(tokenizer: Any, corpus: Corpus, heldout: list[Ids]) -> dict[str, float]:
    """Held-out perplexities of n-gram models over the same tokens."""
    manual, everything = encode(tokenizer, corpus.topics), encode(tokenizer, corpus.training)
    size = len(tokenizer)
    fits = {
        "unigram": (everything, 1),
        "unigram_topics": (manual, 1),
        "bigram": (everything, 2),
        "trigram": (everything, 3),
        "trigram_topics": (manual, 3),
    }
    return {
        name: math.exp(NGram(documents, order, size).score(heldout))
        for name, (documents, order) in fits.items()
    }


def _splits(tokenizer: Any, corpus: Corpus) -> dict[str, Figures]:
    return {
        name: {
            "documents": len(documents),
            "bytes": sum(len(document.text.encode()) for document in documents),
            "tokens": sum(len(ids) for ids in encode(tokenizer, documents)),
            "sha256": sha256(documents),
        }
        for name in ("topics", "extra", "dev", "heldout")
        for documents in [getattr(corpus, name)]
    }


def _continue(model: Any, tokenizer: Any) -> str:
    """A greedy continuation of `PROMPT`; repetition is not penalised."""
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    output = model.generate(ids, do_sample=False, max_new_tokens=SAMPLE_TOKENS)
    return str(tokenizer.decode(output[0], skip_special_tokens=True))


def write_card(folder: Path, figures: Figures) -> None:
    """Writes `figures.json`, and `README.md` from it alone."""
    (folder / "figures.json").write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    template = Path(__file__).with_name("tiny_qwen2_card.md").read_text()
    splits = "\n".join(
        f"| {name} | {row['documents']:,} | {row['bytes']:,} | {row['tokens']:,} "
        f"| `{row['sha256']}` |"
        for name, row in figures["splits"].items()
    )
    names = {"HELDOUT": HELDOUT_TOPICS, "DEV": DEV_TOPICS}
    words = {key: ", ".join(f"`{name}`" for name in value) for key, value in names.items()}
    sample = "\n".join(line.rstrip() for line in figures["sample"]["text"].splitlines())
    text = template.format(
        **figures,
        **words,
        SPLITS=splits,
        SAMPLE=sample,
        OVERLAP=OVERLAP_WORDS,
    )
    (folder / "README.md").write_text(text)
