"""Collate rows to a batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from surgery.data.chat.chunks import stacked
from surgery.data.encoder import IGNORED, Row
from surgery.paths.path_state import MULTIMODAL, TEXT


@dataclass(frozen=True)
class Collator:
    """Collates rows, padded on the right.

    Args:
        pad_token_id: Id of the padding token.
        packing: Whether a row of the batch may have several rows; False by default.
        by_path: Whether rows without images take the text path; False by default.
        image_token: Id of an image token, where the model has parts for image tokens and needs a
            mask; None by default.
        is_routed: Whether the model has such parts; False by default.
    """

    pad_token_id: int
    packing: bool = False
    by_path: bool = False
    image_token: int | None = None
    is_routed: bool = False

    def __call__(self, groups: Sequence[Sequence[Row]]) -> dict[str, Any]:
        """Return a batch.

        Args:
            groups: Rows of each row of the batch; more than one where they are packed.

        Returns:
            `input_ids`, `labels` and other values per token (rows, tokens); `attention_mask`, or
            `position_ids` where rows are packed; what the processor made of images, in the order of
            the rows; and perhaps `paths`.
        """
        rows = [row for group in groups for row in group]
        batch: dict[str, Any] = {
            "input_ids": _padded([_joined(group, "ids") for group in groups], self.pad_token_id),
            "labels": _padded([_joined(group, "labels") for group in groups], IGNORED),
        }
        counts = [[len(row.ids) for row in group] for group in groups]
        if self.packing:
            batch["position_ids"] = _positions(counts, batch["input_ids"].shape[1])
        else:
            real = [torch.ones(sum(c), dtype=torch.long) for c in counts]
            batch["attention_mask"] = _padded(real, 0)
        if self.is_routed:
            batch["image_mask"] = batch["input_ids"] == self._image_id
        if self.by_path and not all(row.has_images for row in rows):
            batch["paths"] = [MULTIMODAL if _has_images(group) else TEXT for group in groups]
        return batch | _token_fields(groups) | stacked([row.images for row in rows])

    @property
    def _image_id(self) -> int:
        return -1 if self.image_token is None else self.image_token


def _has_images(group: Sequence[Row]) -> bool:
    return any(row.has_images for row in group)


def _joined(group: Sequence[Row], field: str) -> torch.Tensor:
    return torch.cat([getattr(row, field) for row in group])


def _padded(rows: Sequence[torch.Tensor], value: int) -> torch.Tensor:
    return pad_sequence(list(rows), batch_first=True, padding_value=value)


def _positions(counts: Sequence[Sequence[int]], width: int) -> torch.Tensor:
    """Positions (rows, width) that restart with each packed row, and with the padding."""
    return torch.stack(
        [torch.cat([torch.arange(n) for n in (*row, width - sum(row))]) for row in counts]
    )


def _token_fields(groups: Sequence[Sequence[Row]]) -> dict[str, torch.Tensor]:
    names = dict.fromkeys(name for group in groups for row in group for name in row.token_fields)
    return {name: _padded([_values(group, name) for group in groups], 0) for name in names}


def _values(group: Sequence[Row], name: str) -> torch.Tensor:
    return torch.cat([row.token_fields.get(name, torch.zeros_like(row.ids)) for row in group])
