"""The prompts of `surgery verify`: a few sentences, or ids where the base has no tokenizer."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

_SENTENCES: Final = (
    "The surgeon washed her hands, put on her gloves and asked for the smallest knife on the tray.",
    "A list in Python is a sequence that can be changed in place, as this example shows:",
    "What do you see in this picture, and what is to the left of it?",
    "Once there was a phone that could read.",
)
_TOKEN: Final = re.compile(r"token_(id|index)s?$")
_LENGTHS: Final = (12, 9, 6, 4)
"""Tokens of each prompt, at most: no two alike, so that a batch of them is padded."""


@dataclass(frozen=True)
class Prompts:
    """A batch of prompts, padded on the left.

    Args:
        ids: (rows, tokens), int64.
        mask: (rows, tokens), 1 for a real token.
        pad: the id that fills up.
        source: where they are from: `tokenizer` or `random ids`.
        images: bool (rows, tokens), tokens that a model with parts for image tokens is told to take
            for them: some in every row, at random places unless all rows must be alike.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    pad: int
    source: str
    images: torch.Tensor

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """As a model takes them."""
        return {"input_ids": self.ids, "attention_mask": self.mask}

    def take(self, rows: Sequence[int] | None) -> "Prompts":
        """Some of the rows, as wide as all of them; all of them for None."""
        if rows is None:
            return self
        index = list(rows)
        images = self.images[index]
        return Prompts(self.ids[index], self.mask[index], self.pad, self.source, images)

    def alone(self, row: int) -> "Prompts":
        """One row without its padding."""
        real = self.mask[row].bool()
        ids, mask, images = (t[row][real][None] for t in (self.ids, self.mask, self.images))
        return Prompts(ids, mask, self.pad, self.source, images)

    def without_images(self) -> "Prompts":
        """The same prompts, all of whose tokens are text."""
        return replace(self, images=torch.zeros_like(self.images))

    def generation(self, tokens: int, *, use_cache: bool = True) -> Any:
        """The configuration that continues them greedily by exactly so many tokens."""
        from transformers import GenerationConfig

        return GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            pad_token_id=self.pad,
            use_cache=use_cache,
        )


def make_prompts(
    folder: Path, model: Any, *, alike: bool = False, trust_remote_code: bool = False
) -> Prompts:
    """Tokenize the sentences, or draw ids of the vocabulary that have no meaning of their own.

    Args:
        folder: of the base, perhaps with a tokenizer.
        model: the base, for its vocabulary.
        alike: whether image tokens must have the same places in every row.
        trust_remote_code: whether the tokenizer may run code of its own.
    """
    size = _vocabulary(model)
    pad = model.generation_config.pad_token_id
    pad = pad if isinstance(pad, int) and 0 <= pad < size else 0
    rows = _tokenized(folder, trust_remote_code)
    if rows and max(map(max, rows)) < size:
        return _batch(rows, pad, "tokenizer", alike)
    plain = torch.tensor(sorted({*range(size)} - _special(model.config)) or [0])
    generator = torch.Generator().manual_seed(0)
    picks = (torch.randint(len(plain), (length,), generator=generator) for length in _LENGTHS)
    drawn = [plain[pick].tolist() for pick in picks]
    return _batch(drawn, pad, "random ids", alike)


def _vocabulary(model: Any) -> int:
    """How many ids there are; a config may count fewer than the embeddings hold."""
    rows: int = model.get_input_embeddings().weight.shape[0]
    named = getattr(model.config.get_text_config(decoder=True), "vocab_size", None)
    return min(rows, named) if isinstance(named, int) and named > 0 else rows


def _special(config: Any) -> set[int]:
    """Ids that a config names, such as an image token's, which would call for an image."""
    inner = (getattr(config, name, None) for name in config.sub_configs)
    fields = [(k, v) for c in (config, *inner) if c is not None for k, v in vars(c).items()]
    named = [value for name, value in fields if _TOKEN.search(name)]
    flat = (i for value in named for i in (value if isinstance(value, list | tuple) else [value]))
    return {value for value in flat if isinstance(value, int)}


def _tokenized(folder: Path, trust_remote_code: bool) -> list[list[int]]:
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        pairs = zip(_SENTENCES, _LENGTHS, strict=True)
        rows = [tokenizer(sentence)["input_ids"][:length] for sentence, length in pairs]
    except Exception:  # none there, or one that needs what isn't installed: ids do as well
        return []
    # transformers makes up a tokenizer of unknown tokens where the folder has none
    is_real = list(map(len, rows)) == list(_LENGTHS) and len({i for row in rows for i in row}) > 8
    return rows if is_real else []


def _batch(rows: list[list[int]], pad: int, source: str, alike: bool) -> Prompts:
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    lengths = [min(map(len, rows))] * len(rows) if alike else [len(row) for row in rows]
    return Prompts(ids, mask, pad, source, _images(lengths, width, alike))


def _images(lengths: list[int], width: int, alike: bool) -> torch.Tensor:
    """A run of two image tokens or more in the last so many tokens of each row, text around it."""
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(len(lengths), width, dtype=torch.bool)
    for row, length in enumerate(lengths):
        spare = 0 if alike else max(length - 4, 0)
        skipped, longer = torch.randint(spare // 2 + 1, (2,), generator=generator).tolist()
        start = width - length + 1 + skipped
        images[row, start : min(start + 2 + longer, width)] = True
    return images
