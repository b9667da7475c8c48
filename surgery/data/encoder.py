"""From a record to token ids and labels: chat template, images, and who is learned from.

A conversation is tokenized piece by piece, each answer apart from what comes before it, because
that is how it is generated later; so labels begin exactly where an answer does.
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
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError

IGNORED: Final = -100
"""The label that no loss counts."""

_MEDIA_TOKEN: Final = re.compile(r"[<\[|].*(image|img|vision|video|audio|boi|eoi)", re.IGNORECASE)
"""How a token is written that stands for something other than words."""


@dataclass(frozen=True)
class Row:
    """What a model learns from at once.

    Args:
        ids: (tokens,), int64.
        labels: (tokens,), the ids that are learned, `IGNORED` elsewhere.
        images: What the processor made of the images, by the model's argument; images first.
        sees: Whether it has images.
        beside: Further values of each token, (tokens,), by the model's argument.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    images: Mapping[str, torch.Tensor] = field(default_factory=dict)
    has_images: bool = False
    token_fields: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Encoder:
    """Encodes records for one model.

    Args:
        processor: Of a model that sees; or a tokenizer.
        length: Tokens of a row, at most.
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
        """The id that fills up a batch; the end's where the tokenizer has none."""
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return int(next(token for token in known if token is not None))

    @property
    def image_token(self) -> int | None:
        """The id that images are made of."""
        token = getattr(self._processor, "image_token", None) if self.is_multimodal else None
        return None if token is None else int(self.tokenizer.convert_tokens_to_ids(token))

    @property
    def has_template(self) -> bool:
        """Whether the model has a chat template of its own."""
        return bool(self._named)

    def check(self, record: Record) -> int:
        """Look at a record as text, without tokens and pixels; how many rows it makes.

        Returns:
            Rows of a conversation; 1 for a text, which has as many as its tokens fill.

        Raises:
            SurgeryError: D107 for an image that the model can't see, and what `Chat.rows` raises.
        """
        self._refuse_unseen(record)
        if record.text:
            self.chat.refuse_special(record)
            return 1
        return len(self.chat.rows(record))

    def check_questions(self, record: Record) -> None:
        """Look at what is asked in a conversation as text.

        Raises:
            SurgeryError: D104 for a text, which asks nothing, D107 for an image that the model
                can't see, and what `Chat.prompt` raises.
        """
        self._refuse_unseen(record)
        if record.text:
            raise SurgeryError(no_answer(record.location, "a text asks nothing"))
        for at, turn in enumerate(record.turns):
            if turn.role == "assistant" and turn.is_learned:
                self.chat.prompt(record, at)

    def conversation(self, record: Record, part: int = 0) -> Row:
        """Encode a conversation, or that row of it where each answer makes one.

        Raises:
            SurgeryError: D106 for an image that doesn't decode, D108 for what doesn't fit, D116
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
        """Encode a text whole, in rows of `length` tokens; the last one may be shorter.

        Raises:
            SurgeryError: D116 for what the tokenizer refuses.
        """
        ends = [self.tokenizer.eos_token_id] if self.tokenizer.eos_token_id is not None else []
        with named_errors(location):
            ids = torch.tensor([*self.tokenizer(text, verbose=False)["input_ids"], *ends])
        for part in torch.split(ids, self.length):
            if len(part) > 1:
                yield _row(part, part.clone(), {}, False, {})

    def questions(self, asked: Sequence[tuple[Record, int]]) -> Any:
        """Encode conversations up to where an answer begins, as `generate` takes them.

        Args:
            asked: For each row a conversation, and how many of its turns come before the answer.

        Returns:
            `input_ids` and `attention_mask` (rows, tokens), padded on the left, and what the model
            takes of images.

        Raises:
            SurgeryError: D106 for an image that doesn't decode, D112 to D114 for what the chat
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
        """Encode the words of a record's turns without the chat template, as `questions` does.

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
            raise SurgeryError(_no_vision_tower(record.location))

    def _special_tokens(self) -> list[str]:
        """Tokens that the model takes for an image, a video or a sound."""
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
        """Cut a row to `length`, if its images and some of an answer fit."""
        learned = (row.labels[: self.length] != IGNORED).any()
        if len(row.ids) <= self.length and learned:
            return row
        is_image = torch.isin(
            row.ids, torch.tensor(self.image_token if row.has_images else IGNORED)
        )
        images, kept = int(is_image.sum()), int(is_image[: self.length].sum())
        if kept < images or not learned:
            raise SurgeryError(_too_long(location, images, len(row.ids), self.length))
        cut = {name: value[: self.length] for name, value in row.token_fields.items()}
        ids, labels = row.ids[: self.length], row.labels[: self.length]
        return Row(ids, labels, row.images, row.has_images, cut)


def _row(
    ids: torch.Tensor,
    labels: torch.Tensor,
    images: Mapping[str, torch.Tensor],
    has_images: bool,
    token_fields: Mapping[str, torch.Tensor],
) -> Row:
    # nothing comes before the first token, and in a packed row something that must not foretell it
    labels[:1] = IGNORED
    return Row(ids, labels, images, has_images, token_fields)


def _no_vision_tower(location: RecordLocation) -> Diagnostic:
    return Diagnostic(
        code="D107",
        what=f"{location}: this record has images, and the model sees none",
        why="its folder has no image processor",
        fix="name `vision:` in the recipe, or a model that sees in `model=`",
    )


def _too_long(location: RecordLocation, images: int, tokens: int, length: int) -> Diagnostic:
    return Diagnostic(
        code="D108",
        what=f"{location}: {tokens} tokens, {images} of them of images, are more than the {length} "
        "of a row",
        why="a row that is cut must keep its images whole and something of an answer",
        fix="raise `length` up to the model's context, show fewer or smaller images, or leave such "
        "records out with bad_records=skip",
    )
