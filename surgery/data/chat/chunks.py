"""Pieces of a conversation to token ids and pixels, by whatever tokenizer or processor a model has.

What one raises names the record. Pieces with images are encoded one by one, since not every
processor takes several texts with images for some of them.
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
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.diagnostics.wording import named_line

ANCHOR: Final = "\n"
"""Stands before a piece while it is tokenized, and is cut off after that."""

_Named = dict[str, torch.Tensor]
_Made = tuple[torch.Tensor, _Named, _Named]


@dataclass(frozen=True)
class Encoded:
    """Pieces of a record.

    Args:
        ids: Of each piece, (tokens,).
        images: What became of all images, by the model's argument; images first.
        beside: Further values of each token of all pieces, (tokens,), by the model's argument.
    """

    ids: list[torch.Tensor]
    images: _Named
    token_fields: _Named


def find_anchor(tokenizer: Any) -> list[int]:
    """The ids of `ANCHOR`, where a tokenizer puts a space of its own before a text; else none.

    SentencePiece's do, as those of Llama 2, Mistral and Phi-3; an answer that is tokenized behind
    nothing would begin with a space that nobody generates. Behind the anchor it doesn't.
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
    """Encode pieces of a record.

    Args:
        processor: Of the model, or its tokenizer.
        chunks: In order, from the first.
        record: Whose images they show.
        anchor: What `find_anchor` says of the tokenizer.

    Raises:
        SurgeryError: D106 for an image that doesn't decode, D116 for what the tokenizer or the
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
        return encode_chunks(processor, chunks, record)  # one grew together with the anchor
    made[1:] = [_without_anchor(each, len(anchor)) for each in made[1:]]
    names = dict.fromkeys(name for _, _, token_fields in made for name in token_fields)
    values = {n: [by.get(n, torch.zeros_like(ids)) for ids, _, by in made] for n in names}
    token_fields = {name: torch.cat(rows) for name, rows in values.items()}
    return Encoded([ids for ids, _, _ in made], stacked([i for _, i, _ in made]), token_fields)


def stacked(made: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """What a processor made of images several times, as one; tiles are filled up with zeros.

    Args:
        made: For each time, by the model's argument; empty where there were no images.
    """
    names = dict.fromkeys(name for each in made for name in each)
    by_name = {name: [each[name] for each in made if name in each] for name in names}
    return {name: torch.cat(_as_wide(tensors)) for name, tensors in by_name.items()}


@contextmanager
def named_errors(location: RecordLocation | None) -> Iterator[None]:
    """Name the record where a tokenizer or a processor raises whatever it raises.

    Raises:
        SurgeryError: D116.
    """
    try:
        yield
    except Exception as error:
        raise SurgeryError(_not_encoded(location, error)) from error


def _without_anchor(made: _Made, count: int) -> _Made:
    """What comes behind so many tokens."""
    ids, images, token_fields = made
    return ids[count:], images, {name: value[count:] for name, value in token_fields.items()}


def _tokenized(processor: Any, texts: list[str]) -> list[torch.Tensor]:
    tokenizer = getattr(processor, "tokenizer", processor)
    found = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return [torch.tensor(ids, dtype=torch.long) for ids in found]


def _with_images(processor: Any, text: str, images: list[Any]) -> _Made:
    """The ids of a text with images, what became of these, and what else each token has."""
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
    """Tensors with zeros behind each dimension but their first, as processors fill up tiles."""
    widest = [max(sizes) for sizes in zip(*(t.shape[1:] for t in tensors), strict=True)]
    lacking = ([w - n for w, n in zip(widest, t.shape[1:], strict=True)] for t in tensors)
    return [
        torch.nn.functional.pad(tensor, [n for more in reversed(by) for n in (0, more)])
        for tensor, by in zip(tensors, lacking, strict=True)
    ]


def _not_encoded(location: RecordLocation | None, error: Exception) -> Diagnostic:
    return Diagnostic(
        code="D116",
        what=f"{location or 'a text'}: this record can't be encoded",
        why=f"the tokenizer or the processor says {named_line(error)}",
        fix="change the record, or leave such records out with bad_records=skip",
    )
