"""Chunks of a conversation to token ids and pixels, by any tokenizer or processor.

Errors name the record. Chunks with images are encoded one by one, since not every processor takes
several texts with images for some of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import torch

from surgery.data.base import Record, RecordLocation
from surgery.data.chat.turns import Chunk
from surgery.data.images import open_images
from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.diagnostics.wording import named_line

ANCHOR: Final = "\n"
"""Put before a chunk while it is tokenized, and removed after that."""

_Named = dict[str, torch.Tensor]
_Made = tuple[torch.Tensor, _Named, _Named]


@dataclass(frozen=True)
class Encoded:
    """Encoded chunks of a record.

    Args:
        ids: Token ids of each chunk, (tokens,).
        images: What the processor made of all images, by the model's argument; images first.
        token_fields: Further values per token of all chunks, (tokens,), by the model's argument.
    """

    ids: list[torch.Tensor]
    images: _Named
    token_fields: _Named


def find_anchor(tokenizer: Any) -> list[int]:
    """The ids of `ANCHOR`, where a tokenizer puts a space before a text; empty otherwise.

    SentencePiece's do, as those of Llama 2, Mistral and Phi-3; an answer that is tokenized alone
    would begin with a space that is never generated. After the anchor it doesn't.
    """
    anchor, alone, after = (
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in (ANCHOR, "a", ANCHOR + "a")
    )
    is_separate = after[: len(anchor)] == anchor
    return list(anchor) if is_separate and after[len(anchor) :] != alone else []


def encode_chunks(
    processor: Any, chunks: Sequence[Chunk], record: Record, anchor: Sequence[int] = ()
) -> Encoded:
    """Encode chunks of a record.

    Args:
        processor: Processor of the model, or its tokenizer.
        chunks: Chunks in order, from the first.
        record: Record with the images.
        anchor: Result of `find_anchor`; empty by default.

    Raises:
        SurgeryError: D106 for an image that can't be decoded, D116 for what the tokenizer or the
            processor raises.
    """
    files = iter(record.images)
    images_of = [open_images([*islice(files, chunk.images)], record.location) for chunk in chunks]
    with named_errors(record.location):
        texts_at = [(at, chunk.text) for at, chunk in enumerate(chunks) if not chunk.images]
        texts = [ANCHOR + text if anchor and at else text for at, text in texts_at]
        known = iter(_tokenized(processor, texts) if texts else ())
        made = [
            _with_images(processor, ANCHOR + chunk.text if anchor and at else chunk.text, images)
            if images
            else (next(known), {}, {})
            for at, (chunk, images) in enumerate(zip(chunks, images_of, strict=True))
        ]
    if any(ids[: len(anchor)].tolist() != [*anchor] for ids, _, _ in made[1:]):
        return encode_chunks(processor, chunks, record)  # one merged with the anchor
    made[1:] = [_without_anchor(each, len(anchor)) for each in made[1:]]
    names = dict.fromkeys(name for _, _, token_fields in made for name in token_fields)
    values = {n: [by.get(n, torch.zeros_like(ids)) for ids, _, by in made] for n in names}
    token_fields = {name: torch.cat(rows) for name, rows in values.items()}
    return Encoded([ids for ids, _, _ in made], stacked([i for _, i, _ in made]), token_fields)


def stacked(made: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Concatenate what a processor made of images several times; tiles are padded with zeros.

    Args:
        made: For each time, by the model's argument; empty where there were no images.
    """
    names = dict.fromkeys(name for each in made for name in each)
    by_name = {name: [each[name] for each in made if name in each] for name in names}
    return {name: torch.cat(_as_wide(tensors)) for name, tensors in by_name.items()}


@contextmanager
def named_errors(location: RecordLocation | None) -> Iterator[None]:
    """Name the record in whatever a tokenizer or a processor raises.

    Raises:
        SurgeryError: D116.
    """
    try:
        yield
    except Exception as error:
        raise SurgeryError(
            diagnostic("D116", location=location or "a text", reason=named_line(error))
        ) from error


def _without_anchor(made: _Made, count: int) -> _Made:
    """What follows so many tokens."""
    ids, images, token_fields = made
    return ids[count:], images, {name: value[count:] for name, value in token_fields.items()}


def _tokenized(processor: Any, texts: list[str]) -> list[torch.Tensor]:
    tokenizer = getattr(processor, "tokenizer", processor)
    found = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return [torch.tensor(ids, dtype=torch.long) for ids in found]


def _with_images(processor: Any, text: str, images: list[Any]) -> _Made:
    """Ids of a text with images, what became of these, and further values per token."""
    made = processor(text=[text], images=images, add_special_tokens=False, return_tensors="pt")
    ids = made.pop("input_ids")
    made.pop("attention_mask", None)
    token_fields = {name: value[0] for name, value in made.items() if value.shape[:2] == ids.shape}
    return (
        ids[0],
        {name: value for name, value in made.items() if name not in token_fields},
        token_fields,
    )


def _as_wide(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors padded with zeros in each dimension but the first, as processors pad tiles."""
    widest = [max(sizes) for sizes in zip(*(t.shape[1:] for t in tensors), strict=True)]
    lacking = ([w - n for w, n in zip(widest, t.shape[1:], strict=True)] for t in tensors)
    return [
        torch.nn.functional.pad(tensor, [n for more in reversed(by) for n in (0, more)])
        for tensor, by in zip(tensors, lacking, strict=True)
    ]
