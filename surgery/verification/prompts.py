"""The prompts of `surgery verify`: a few sentences, or ids where the base has no tokenizer."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from surgery.data.samples.images import draw_image
from surgery.data.samples.texts import SENTENCES

_TOKEN: Final = re.compile(r"token_(id|index)s?$")
_LENGTHS: Final = (12, 9, 6, 4)
"""Maximum length of each prompt, in tokens: all different, so that a batch of them is padded."""


@dataclass(frozen=True)
class Prompts:
    """A batch of prompts, padded on the left.

    Args:
        ids: (rows, tokens), int64.
        mask: (rows, tokens), 1 at real tokens.
        pad: Id of the padding token.
        source: Origin: `tokenizer`, `processor` or `random ids`.
        image_mask: (rows, tokens), bool, True at image tokens: those of the images; without images
            some in every row, at random positions unless all rows must have the same.
        pixel_values: Tiles of each row of a multimodal model (tiles, channels, height, width),
            perhaps none; empty for a text model.
        token: Id of an image token; None without images.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    pad: int
    source: str
    image_mask: torch.Tensor
    pixel_values: tuple[torch.Tensor, ...] = ()
    token: int | None = None

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """Arguments of the model."""
        text = {"input_ids": self.ids, "attention_mask": self.mask}
        pixels = [picture for picture in self.pixel_values if len(picture)]
        return {**text, "pixel_values": torch.cat(pixels)} if pixels else text

    def take(self, rows: Sequence[int] | None) -> "Prompts":
        """Some of the rows, as wide as all of them; all of them for None."""
        if rows is None:
            return self
        index = list(rows)
        ids, mask, image_mask = (t[index] for t in (self.ids, self.mask, self.image_mask))
        pixel_values = tuple(self.pixel_values[row] for row in index) if self.pixel_values else ()
        return replace(self, ids=ids, mask=mask, image_mask=image_mask, pixel_values=pixel_values)

    def alone(self, row: int) -> "Prompts":
        """One row without its padding."""
        real = self.mask[row].bool()
        ids, mask, image_mask = (t[row][real][None] for t in (self.ids, self.mask, self.image_mask))
        return replace(
            self,
            ids=ids,
            mask=mask,
            image_mask=image_mask,
            pixel_values=self.pixel_values[row : row + 1],
        )

    def without_images(self) -> "Prompts":
        """The same prompts with all tokens as text for parts for image tokens."""
        return replace(self, image_mask=torch.zeros_like(self.image_mask))

    def generation(self, tokens: int, *, use_cache: bool = True) -> Any:
        """The configuration that continues them greedily by exactly so many tokens."""
        from transformers import GenerationConfig

        return GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            pad_token_id=self.pad,
            suppress_tokens=None if self.token is None else [self.token],
            use_cache=use_cache,
        )


def make_prompts(
    folder: Path, model: Any, *, same_positions: bool = False, trust_remote_code: bool = False
) -> Prompts:
    """Tokenize the sentences, or draw ids from the vocabulary, without special ones.

    Args:
        folder: Folder of the base, perhaps with a tokenizer.
        model: The base, for its vocabulary.
        same_positions: Whether image tokens must have the same positions in every row; False by
            default.
        trust_remote_code: Whether the tokenizer may run its own Python code; False by default.
    """
    with_images = None if same_positions else _with_images(folder, model)
    if with_images is not None:
        return with_images
    size = _vocabulary(model)
    pad = model.generation_config.pad_token_id
    pad = pad if isinstance(pad, int) and 0 <= pad < size else 0
    rows = _tokenized(folder, trust_remote_code)
    if rows and max(map(max, rows)) < size:
        return _batch(rows, pad, "tokenizer", same_positions)
    plain = torch.tensor(sorted({*range(size)} - _special(model.config)) or [0])
    generator = torch.Generator().manual_seed(0)
    picks = (torch.randint(len(plain), (length,), generator=generator) for length in _LENGTHS)
    drawn = [plain[pick].tolist() for pick in picks]
    return _batch(drawn, pad, "random ids", same_positions)


def _vocabulary(model: Any) -> int:
    """Number of ids; a config may count fewer than the embedding has rows."""
    rows: int = model.get_input_embeddings().weight.shape[0]
    named = getattr(model.config.get_text_config(decoder=True), "vocab_size", None)
    return min(rows, named) if isinstance(named, int) and named > 0 else rows


def _special(config: Any) -> set[int]:
    """Ids that a config names, such as an image token's, which would need an image."""
    inner = (getattr(config, name, None) for name in config.sub_configs)
    fields = [(k, v) for c in (config, *inner) if c is not None for k, v in vars(c).items()]
    named = [value for name, value in fields if _TOKEN.search(name)]
    flat = (i for value in named for i in (value if isinstance(value, list | tuple) else [value]))
    return {value for value in flat if isinstance(value, int)}


def _tokenized(folder: Path, trust_remote_code: bool) -> list[list[int]]:
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        pairs = zip(SENTENCES, _LENGTHS, strict=True)
        rows = [tokenizer(sentence)["input_ids"][:length] for sentence, length in pairs]
    except Exception:  # none there, or one that needs what isn't installed: ids do as well
        return []
    # transformers makes up a tokenizer of unknown tokens where the folder has none
    is_real = list(map(len, rows)) == list(_LENGTHS) and len({i for row in rows for i in row}) > 8
    return rows if is_real else []


def _with_images(folder: Path, model: Any) -> Prompts | None:
    """The sentences, two of them after an image; None where no processor gives one tensor."""
    from transformers import AutoProcessor

    token: int | None = getattr(model.config, "image_token_id", None)
    if token is None:
        return None
    try:
        processor: Any = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        made = [
            _encode_with_image(processor, row, sentence) for row, sentence in enumerate(SENTENCES)
        ]
    except Exception:  # none there, or one that takes other things: text does as well
        return None
    if any((token in ids) != bool(len(pixels)) for ids, pixels in made):
        return None
    lengths = zip(made, _LENGTHS, strict=True)
    rows = [ids[: ids.count(token) + length] for (ids, _), length in lengths]
    pad = processor.tokenizer.pad_token_id
    batch = _batch(rows, 0 if pad is None else pad, "processor", False)
    pixel_values = tuple(pixels for _, pixels in made)
    return replace(batch, image_mask=batch.ids == token, pixel_values=pixel_values, token=token)


def _encode_with_image(processor: Any, row: int, sentence: str) -> tuple[list[int], torch.Tensor]:
    """Ids of one sentence, every other one after a generated image, and the image's pixels."""
    size = processor.image_processor.size
    shape = (size["height"], size["width"])
    if row % 2:
        return processor(text=[sentence])["input_ids"][0], torch.zeros(0, 3, *shape)
    image = draw_image(row, *shape)
    made = processor(images=[image], text=[processor.image_token + sentence], return_tensors="pt")
    known = {"input_ids", "attention_mask", "pixel_values"}
    if set(made) != known or made["pixel_values"].dim() != 4:
        raise ValueError("another kind of processor")
    return made["input_ids"][0].tolist(), made["pixel_values"]


def _batch(rows: list[list[int]], pad: int, source: str, same_positions: bool) -> Prompts:
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    lengths = [min(map(len, rows))] * len(rows) if same_positions else [len(row) for row in rows]
    return Prompts(ids, mask, pad, source, _image_mask(lengths, width, same_positions))


def _image_mask(lengths: list[int], width: int, same_positions: bool) -> torch.Tensor:
    """A run of two image tokens or more in the last so many tokens of each row, text around it."""
    generator = torch.Generator().manual_seed(0)
    image_mask = torch.zeros(len(lengths), width, dtype=torch.bool)
    for row, length in enumerate(lengths):
        spare = 0 if same_positions else max(length - 4, 0)
        skipped, longer = torch.randint(spare // 2 + 1, (2,), generator=generator).tolist()
        start = width - length + 1 + skipped
        image_mask[row, start : min(start + 2 + longer, width)] = True
    return image_mask
