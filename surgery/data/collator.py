"""Rows to a batch, as a model takes it."""

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
    """Puts rows together, padded on the right.

    Args:
        pad: the id that fills up.
        packing: whether rows of one place share a row of the batch.
        by_path: whether rows without images take the text path.
        image_token: the id that images are made of, where the model has parts for image tokens
            and must be told of them.
        is_routed: whether it has.
    """

    pad: int
    packing: bool = False
    by_path: bool = False
    image_token: int | None = None
    is_routed: bool = False

    def __call__(self, places: Sequence[Sequence[Row]]) -> dict[str, Any]:
        """Return a batch.

        Args:
            places: the rows of each row of the batch; more than one where they are packed.

        Returns:
            `input_ids`, `labels` and what else belongs to a token (rows, tokens); `attention_mask`,
            or `position_ids` where rows are packed; what the processor made of images, in the order
            of the rows; and perhaps `paths`.
        """
        rows = [row for place in places for row in place]
        batch: dict[str, Any] = {
            "input_ids": _padded([_joined(place, "ids") for place in places], self.pad),
            "labels": _padded([_joined(place, "labels") for place in places], IGNORED),
        }
        counts = [[len(row.ids) for row in place] for place in places]
        if self.packing:
            batch["position_ids"] = _positions(counts, batch["input_ids"].shape[1])
        else:
            real = [torch.ones(sum(c), dtype=torch.long) for c in counts]
            batch["attention_mask"] = _padded(real, 0)
        if self.is_routed:
            batch["image_mask"] = batch["input_ids"] == self._image_id
        if self.by_path and not all(row.sees for row in rows):
            batch["paths"] = [MULTIMODAL if _sees(place) else TEXT for place in places]
        return batch | _beside(places) | stacked([row.images for row in rows])

    @property
    def _image_id(self) -> int:
        return -1 if self.image_token is None else self.image_token


def _sees(place: Sequence[Row]) -> bool:
    return any(row.sees for row in place)


def _joined(place: Sequence[Row], field: str) -> torch.Tensor:
    return torch.cat([getattr(row, field) for row in place])


def _padded(rows: Sequence[torch.Tensor], value: int) -> torch.Tensor:
    return pad_sequence(list(rows), batch_first=True, padding_value=value)


def _positions(counts: Sequence[Sequence[int]], width: int) -> torch.Tensor:
    """Positions (rows, width) that start anew with each packed row, and with what fills up."""
    return torch.stack(
        [torch.cat([torch.arange(n) for n in (*row, width - sum(row))]) for row in counts]
    )


def _beside(places: Sequence[Sequence[Row]]) -> dict[str, torch.Tensor]:
    names = dict.fromkeys(name for place in places for row in place for name in row.beside)
    return {name: _padded([_values(place, name) for place in places], 0) for name in names}


def _values(place: Sequence[Row], name: str) -> torch.Tensor:
    return torch.cat([row.beside.get(name, torch.zeros_like(row.ids)) for row in place])
