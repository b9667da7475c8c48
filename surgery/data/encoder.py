"""From a record to token ids and labels: chat template, images, and which turns are learned.

A conversation is tokenized in chunks, each answer separate from what comes before it, because that
is how it is generated later; so labels begin exactly where an answer does.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch.nn.utils.rnn import pad_sequence

from surgery.data.base import IMAGE, Record, RecordLocation, no_answer
from surgery.data.chat.chunks import encode_chunks, find_anchor, named_errors, stacked
from surgery.data.chat.template import PLAIN_TEMPLATE, Template, template_of
from surgery.data.chat.turns import Chat
from surgery.data.images import open_images
from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError

IGNORED: Final = -100
"""Label that the loss ignores."""

_MEDIA_TOKEN: Final = re.compile(r"[<\[|].*(image|img|vision|video|audio|boi|eoi)", re.IGNORECASE)
"""Pattern of tokens that stand for images, videos or sound."""


@dataclass(frozen=True)
class Row:
    """One sequence of tokens to learn from.

    Args:
        ids: (tokens,), int64.
        labels: (tokens,), int64; `IGNORED` at tokens that aren't learned.
        images: What the processor made of the images, by the model's argument; images first.
        has_images: Whether it has images; False by default.
        token_fields: Further values per token, (tokens,), by the model's argument.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    images: Mapping[str, torch.Tensor] = field(default_factory=dict)
    has_images: bool = False
    token_fields: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Encoder:
    """Encodes records for one model.

    Args:
        processor: Processor of a multimodal model, or a tokenizer.
        length: Maximum length of a row, in tokens.
    """

    def __init__(self, processor: Any, length: int) -> None:
        self.is_multimodal = hasattr(processor, "image_processor")
        self.tokenizer = processor.tokenizer if self.is_multimodal else processor
        self.length = length
        self._processor = processor
        self._anchor = find_anchor(self.tokenizer)
        self._named = getattr(processor, "chat_template", None) or self.tokenizer.chat_template
        image = getattr(processor, "image_token", None) if self.is_multimodal else None
        special = self._special_tokens() if self.is_multimodal else ()
        self.chat = Chat(Template(self._rendered, image, special), special)

    @property
    def pad_token_id(self) -> int:
        """Id of the padding token; of the end token where the tokenizer has none."""
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return int(next(token for token in known if token is not None))

    @property
    def image_token(self) -> int | None:
        """Id of an image token; None without images."""
        token = getattr(self._processor, "image_token", None) if self.is_multimodal else None
        return None if token is None else int(self.tokenizer.convert_tokens_to_ids(token))

    @property
    def has_template(self) -> bool:
        """Whether the model has its own chat template."""
        return bool(self._named)

    def check(self, record: Record) -> int:
        """Check a record as text, without tokens and pixels.

        Returns:
            Number of rows of a conversation; 1 for a text, whose rows depend on its tokens.

        Raises:
            SurgeryError: D107 for an image that the model can't take, and what `Chat.rows` raises.
        """
        self._refuse_unseen(record)
        if record.text:
            self.chat.refuse_special(record)
            return 1
        return len(self.chat.rows(record))

    def check_questions(self, record: Record) -> None:
        """Check the questions of a conversation as text.

        Raises:
            SurgeryError: D104 for a text, which asks nothing, D107 for an image that the model
                can't take, and what `Chat.prompt` raises.
        """
        self._refuse_unseen(record)
        if record.text:
            raise SurgeryError(no_answer(record.location, "a text asks nothing"))
        for at, turn in enumerate(record.turns):
            if turn.role == "assistant" and turn.is_learned:
                self.chat.prompt(record, at)

    def conversation(self, record: Record, part: int = 0) -> Row:
        """Encode a conversation, or one of its rows where each answer makes one.

        Raises:
            SurgeryError: D106 for an image that can't be decoded, D108 for what is too long, D116
                for what the tokenizer or the processor refuses, and what `check` raises.
        """
        self._refuse_unseen(record)
        chunks = self.chat.rows(record)[part]
        made = encode_chunks(self._processor, chunks, record, self._anchor)
        labels = [
            each if chunk.is_learned else torch.full_like(each, IGNORED)
            for each, chunk in zip(made.ids, chunks, strict=True)
        ]
        ids = torch.cat(made.ids)
        has_images = any(chunk.images for chunk in chunks)
        row = _row(ids, torch.cat(labels), made.images, has_images, made.token_fields)
        return self._fitted(row, record.location)

    def text(self, text: str, location: RecordLocation | None = None) -> Iterator[Row]:
        """Encode a complete text, in rows of `length` tokens; the last one may be shorter.

        Raises:
            SurgeryError: D116 for what the tokenizer refuses.
        """
        ends = [self.tokenizer.eos_token_id] if self.tokenizer.eos_token_id is not None else []
        with named_errors(location):
            ids = torch.tensor([*self.tokenizer(text, verbose=False)["input_ids"], *ends])
        for part in torch.split(ids, self.length):
            if len(part) > 1:
                yield _row(part, part.clone(), {}, False, {})

    def prompts(self, asked: Sequence[tuple[Record, int]]) -> Any:
        """Encode conversations up to where an answer begins, as `generate` takes them.

        Args:
            asked: For each row a conversation, and the number of turns before the answer.

        Returns:
            `input_ids` and `attention_mask` (rows, tokens), padded on the left, and the model's
            arguments for images.

        Raises:
            SurgeryError: D106 for an image that can't be decoded, D112 to D114 for what the chat
                template doesn't write, D116 for what the tokenizer or the processor refuses.
        """
        from transformers import BatchFeature

        made = [
            encode_chunks(self._processor, [self.chat.prompt(record, end)], record)
            for record, end in asked
        ]
        tokens = [{"input_ids": each.ids[0], **each.token_fields} for each in made]
        mask = [torch.ones_like(each.ids[0]) for each in made]
        batch = {"attention_mask": pad_sequence(mask, True, 0, "left")}
        for name in dict.fromkeys(name for row in tokens for name in row):
            rows = [row.get(name, torch.zeros_like(row["input_ids"])) for row in tokens]
            pad_token_id = self.pad_token_id if name == "input_ids" else 0
            batch[name] = pad_sequence(
                rows, batch_first=True, padding_value=pad_token_id, padding_side="left"
            )
        return BatchFeature(batch | stacked([each.images for each in made]))

    def raw(self, record: Record) -> Any:
        """Encode the text of a record's turns without the chat template, as `questions` does.

        Raises:
            SurgeryError: D106, D113 and D116, as for `questions`.
        """
        self.chat.refuse_special(record)
        words = "".join(turn.text for turn in record.turns)
        images = open_images(record.images, record.location)
        with named_errors(record.location):
            if not images:
                return self.tokenizer([words], return_tensors="pt")
            text = words.replace(IMAGE, self._processor.image_token)
            return self._processor(text=[text], images=images, return_tensors="pt")

    def _refuse_unseen(self, record: Record) -> None:
        if record.images and not self.is_multimodal:
            raise SurgeryError(diagnostic("D107.no_vision_tower", location=record.location))

    def _special_tokens(self) -> list[str]:
        """Tokens that the model takes for an image, a video or sound."""
        added = self.tokenizer.get_added_vocab()
        named = {value for value in vars(self._processor).values() if isinstance(value, str)}
        return sorted(token for token in added if token in named or _MEDIA_TOKEN.match(token))

    def _rendered(
        self, messages: list[dict[str, Any]], tools: Sequence[dict[str, Any]], prompt: bool
    ) -> str:
        text: str = self.tokenizer.apply_chat_template(
            messages,
            tools=list(tools) or None,
            chat_template=template_of(self._named, tools=bool(tools)) or PLAIN_TEMPLATE,
            tokenize=False,
            add_generation_prompt=prompt,
        )
        return text

    def _fitted(self, row: Row, location: RecordLocation) -> Row:
        """Truncate a row to `length`, if its images and part of an answer fit."""
        learned = (row.labels[: self.length] != IGNORED).any()
        if len(row.ids) <= self.length and learned:
            return row
        is_image = torch.isin(
            row.ids, torch.tensor(self.image_token if row.has_images else IGNORED)
        )
        images, fitting = int(is_image.sum()), int(is_image[: self.length].sum())
        if fitting < images or not learned:
            raise SurgeryError(
                diagnostic(
                    "D108",
                    location=location,
                    tokens=len(row.ids),
                    images=images,
                    length=self.length,
                )
            )
        fields = {name: value[: self.length] for name, value in row.token_fields.items()}
        ids, labels = row.ids[: self.length], row.labels[: self.length]
        return Row(ids, labels, row.images, row.has_images, fields)


def _row(
    ids: torch.Tensor,
    labels: torch.Tensor,
    images: Mapping[str, torch.Tensor],
    has_images: bool,
    token_fields: Mapping[str, torch.Tensor],
) -> Row:
    # the first token has no context, and in a packed row the wrong one
    labels[:1] = IGNORED
    return Row(ids, labels, images, has_images, token_fields)
