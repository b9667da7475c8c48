"""From a record to token ids and labels: chat template, images, and who is learned from.

A conversation is tokenized piece by piece, each answer apart from what comes before it, because
that is how it is generated later; so labels begin exactly where an answer does.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from surgery.data.record import IMAGE, Place, Record, Turn
from surgery.diagnostic import Diagnostic, SurgeryError

IGNORED: Final = -100
"""The label that no loss counts."""

PLAIN_TEMPLATE: Final = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'user' %}User: {{ message.content }}\n"
    "{% elif message.role == 'assistant' %}Assistant: {{ message.content }}{{ eos_token }}\n"
    "{% else %}{{ message.content }}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
"""The chat template of a base that has none of its own."""


@dataclass(frozen=True)
class Row:
    """What a model learns from at once.

    Args:
        ids: (tokens,), int64.
        labels: (tokens,), the ids that are learned, `IGNORED` elsewhere.
        images: what the processor made of the images, by the model's argument; images first.
        sees: whether it has images.
        beside: further values of each token, (tokens,), by the model's argument.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    images: Mapping[str, torch.Tensor] = field(default_factory=dict)
    sees: bool = False
    beside: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Encoder:
    """Encodes records for one model.

    Args:
        processor: of a model that sees; or a tokenizer.
        length: tokens of a row, at most.
    """

    def __init__(self, processor: Any, length: int) -> None:
        self.sees = hasattr(processor, "image_processor")
        self.tokenizer = processor.tokenizer if self.sees else processor
        self.length = length
        self._processor = processor
        self._template = getattr(processor, "chat_template", None) or self.tokenizer.chat_template

    @property
    def pad(self) -> int:
        """The id that fills up a batch; the end's where the tokenizer has none."""
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return int(next(token for token in known if token is not None))

    @property
    def image_token(self) -> int | None:
        """The id that images are made of."""
        if not self.sees:
            return None
        return int(self.tokenizer.convert_tokens_to_ids(self._processor.image_token))

    def conversation(self, record: Record) -> Row:
        """Encode a conversation.

        Raises:
            SurgeryError: D106 for an image that doesn't decode, D107 for one that the model can't
                see, D108 for what doesn't fit, D110 for a template that can't be cut at answers.
        """
        if record.images and not self.sees:
            raise SurgeryError(_blind(record.place))
        pieces = self._pieces(record)
        ids, images, beside = self._tokenized([text for text, _ in pieces], record)
        labels = [
            part if learned else torch.full_like(part, IGNORED)
            for part, (_, learned) in zip(ids, pieces, strict=True)
        ]
        row = _row(torch.cat(ids), torch.cat(labels), images, bool(record.images), beside)
        return self._fitted(row, record.place)

    def text(self, text: str) -> Iterator[Row]:
        """Encode a text whole, in rows of `length` tokens; the last one may be shorter."""
        ends = [self.tokenizer.eos_token_id] if self.tokenizer.eos_token_id is not None else []
        ids = torch.tensor([*self.tokenizer(text, verbose=False)["input_ids"], *ends])
        for part in torch.split(ids, self.length):
            if len(part) > 1:
                yield _row(part, part.clone(), {}, False, {})

    def questions(self, asked: Sequence[tuple[Sequence[Turn], Sequence[Path], Place]]) -> Any:
        """Encode turns up to where an answer begins, as `generate` takes them.

        Args:
            asked: for each row its turns, the images that they show, and where it is written.

        Returns:
            `input_ids` and `attention_mask` (rows, tokens), padded on the left, and what the model
            takes of images.

        Raises:
            SurgeryError: D106 for an image that doesn't decode.
        """
        texts = [self._rendered(turns, prompt=True) for turns, _, _ in asked]
        images = [image for _, files, place in asked for image in _opened(files, place)]
        self._need_padding()
        how = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
        if not images:
            return self.tokenizer(texts, add_special_tokens=False, **how)
        return self._processor(text=texts, images=images, add_special_tokens=False, **how)

    def _pieces(self, record: Record) -> list[tuple[str, bool]]:
        """The rendered conversation, cut where answers begin and end; whether each is learned."""
        pieces: list[tuple[str, bool]] = []
        done = ""
        for position, turn in enumerate(record.turns):
            if turn.role != "assistant":
                continue
            prompt = self._rendered(record.turns[:position], prompt=True)
            whole = self._rendered(record.turns[: position + 1], prompt=False)
            if not (prompt.startswith(done) and whole.startswith(prompt)):
                raise SurgeryError(_not_cut(record.place))
            pieces += [(prompt[len(done) :], False), (whole[len(prompt) :], True)]
            done = whole
        return [piece for piece in pieces if piece[0]]

    def _rendered(self, turns: Sequence[Turn], *, prompt: bool) -> str:
        image = self._processor.image_token if self.sees else IMAGE
        messages = [{"role": t.role, "content": t.text.replace(IMAGE, image)} for t in turns]
        text: str = self.tokenizer.apply_chat_template(
            messages,
            chat_template=self._template or PLAIN_TEMPLATE,
            tokenize=False,
            add_generation_prompt=prompt,
        )
        return text

    def _tokenized(
        self, texts: list[str], record: Record
    ) -> tuple[list[torch.Tensor], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The ids of each piece; what the images became; and what else each token has."""
        if not record.images:
            ids = self.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
            return [torch.tensor(part, dtype=torch.long) for part in ids], {}, {}
        self._need_padding()
        batch = self._processor(
            text=texts,
            images=_opened(record.images, record.place),
            add_special_tokens=False,
            padding=True,
            return_tensors="pt",
        )
        real, shape = batch.pop("attention_mask").bool(), batch["input_ids"].shape
        by_token = {name: t for name, t in batch.items() if t.shape[:2] == shape}
        images = {name: t for name, t in batch.items() if name not in by_token}
        ids = [row[mask] for row, mask in zip(by_token.pop("input_ids"), real, strict=True)]
        return ids, images, {name: value[real] for name, value in by_token.items()}

    def _need_padding(self) -> None:
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token

    def _fitted(self, row: Row, place: Place) -> Row:
        """Cut a row to `length`, if its images and some of an answer fit."""
        learned = (row.labels[: self.length] != IGNORED).any()
        if len(row.ids) <= self.length and learned:
            return row
        is_image = torch.isin(row.ids, torch.tensor(self.image_token if row.sees else IGNORED))
        images, kept = int(is_image.sum()), int(is_image[: self.length].sum())
        if kept < images or not learned:
            raise SurgeryError(_too_long(place, images, len(row.ids), self.length))
        cut = {name: value[: self.length] for name, value in row.beside.items()}
        ids, labels = row.ids[: self.length], row.labels[: self.length]
        return Row(ids, labels, row.images, row.sees, cut)


def load_processor(home: Path, *, trust_remote_code: bool = False) -> Any:
    """Open the processor of a model's folder; its tokenizer, where the model sees nothing."""
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(home, trust_remote_code=trust_remote_code)


def _row(
    ids: torch.Tensor,
    labels: torch.Tensor,
    images: Mapping[str, torch.Tensor],
    sees: bool,
    beside: Mapping[str, torch.Tensor],
) -> Row:
    # nothing comes before the first token, and in a packed row something that must not foretell it
    labels[:1] = IGNORED
    return Row(ids, labels, images, sees, beside)


def _opened(files: Sequence[Path], place: Place) -> list[Any]:
    images: list[Any] = []
    if not files:
        return images
    from PIL import Image

    for file in files:
        try:
            with Image.open(file) as image:
                images.append(image.convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise SurgeryError(_no_decoding(place, file, str(error))) from error
    return images


def _blind(place: Place) -> Diagnostic:
    return Diagnostic(
        code="D107",
        what=f"{place}: this record has images, and the model sees none",
        why="its folder has no image processor",
        fix="name `vision:` in the recipe, or a model that sees in `model=`",
    )


def _no_decoding(place: Place, file: Path, why: str) -> Diagnostic:
    return Diagnostic(
        code="D106",
        what=f"{place}: the image `{file}` can't be decoded",
        why=why,
        fix="write the file again, or leave such records out with bad_records=skip",
    )


def _too_long(place: Place, images: int, tokens: int, length: int) -> Diagnostic:
    return Diagnostic(
        code="D108",
        what=f"{place}: {tokens} tokens, {images} of them of images, are more than the {length} "
        "of a row",
        why="a row that is cut must keep its images whole and something of an answer",
        fix="raise `length` up to the model's context, show fewer or smaller images, or leave such "
        "records out with bad_records=skip",
    )


def _not_cut(place: Place) -> Diagnostic:
    return Diagnostic(
        code="D110",
        what=f"{place}: the base's chat template writes a turn otherwise once others follow it",
        why="answers are learned where they are generated, so what comes before one must stay",
        fix="split the conversation into one record for each answer, or give the tokenizer another "
        "chat template",
    )
