"""The two low-rank attentions of a block and the router that weighs them.

Shapes: B rows, T tokens of this call, S tokens so far, D width of the hidden state, H heads,
G heads of keys and values, C width of a head.

Source: Wings (arXiv 2406.03496) and its released code; where and why this differs is in
docs/decisions/0006-learners-are-causal-and-cached.md.
"""

import torch
from torch import nn

from surgery.layers.attention import attend, rotate
from surgery.layers.sequence_cache import SequenceState
from surgery.operations.edits import AddLearner

Rope = tuple[torch.Tensor, torch.Tensor]
"""Cosine and sine of each token's position, (B or 1, T, rotated dimensions of a head)."""


class LowRankLinear(nn.Module):
    """B A x, computed in fp32 and returned in the dtype of x; both are zero until they are loaded.

    Args:
        inputs: Width of x.
        outputs: Width of the result.
        rank: Rank of the product.
        device: Device of the weights.
    """

    def __init__(self, inputs: int, outputs: int, rank: int, device: torch.device) -> None:
        super().__init__()
        self.A = _zero_linear(inputs, rank, device)
        self.B = _zero_linear(rank, outputs, device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (…, outputs) of (…, inputs)."""
        out: torch.Tensor = self.B(self.A(x.to(self.A.weight.dtype)))
        return out.to(x.dtype)


class LowRankAttention(nn.Module):
    """Queries, keys and values are x plus a low-rank map of it; the output map is low-rank.

    Args:
        edit: The planned edit, for the sizes.
        width: C.
        device: Device of the weights.
    """

    def __init__(self, edit: AddLearner, width: int, device: torch.device) -> None:
        super().__init__()
        self.width = width
        self.q = LowRankLinear(edit.hidden, edit.hidden, edit.rank, device)
        self.k = LowRankLinear(edit.hidden, edit.kv, edit.rank, device)
        self.v = LowRankLinear(edit.hidden, edit.kv, edit.rank, device)
        self.o = LowRankLinear(edit.hidden, edit.hidden, edit.rank, device)

    def keys_and_values(self, x_BTD: torch.Tensor, rope: Rope) -> torch.Tensor:
        """Rotated keys, stacked on values: (2, B, G, T, C)."""
        keys, values = self._reduced(x_BTD, self.k), self._reduced(x_BTD, self.v)
        return torch.stack((rotate(keys, rope), values))

    def forward(
        self,
        h_BTD: torch.Tensor,
        keys_and_values: tuple[torch.Tensor, torch.Tensor],
        mask_BTS: torch.Tensor,
        rope: Rope,
    ) -> torch.Tensor:
        """Return (B, T, D); zero for a token that may attend to nothing."""
        q_BHTC = rotate(self._heads(h_BTD + self.q(h_BTD)), rope)
        out: torch.Tensor = self.o(attend(q_BHTC, *keys_and_values, mask_BTS))
        return out

    def _heads(self, x_BTD: torch.Tensor) -> torch.Tensor:
        heads: torch.Tensor = x_BTD.unflatten(2, (-1, self.width)).transpose(1, 2)
        return heads

    def _reduced(self, x_BTD: torch.Tensor, pair: LowRankLinear) -> torch.Tensor:
        """Heads of x plus a low-rank map; of grouped heads, the mean of each group of x."""
        added: torch.Tensor = pair(x_BTD)
        groups = added.shape[2] // self.width
        mean = x_BTD.unflatten(2, (groups, -1, self.width)).mean(dim=3).flatten(2)
        return self._heads(mean + added)


class MixedAttention(nn.Module):
    """Both attentions of a block, and the router that weighs them.

    Args:
        edit: The planned edit, for the sizes.
        width: C.
        device: Device of the weights.
    """

    def __init__(self, edit: AddLearner, width: int, device: torch.device) -> None:
        super().__init__()
        self.visual = LowRankAttention(edit, width, device)
        self.textual = LowRankAttention(edit, width, device)
        self.router = _zero_linear(edit.columns, 2, device, bias=True)

    def keys_and_values(self, sequence: SequenceState, rope: Rope) -> torch.Tensor:
        """Keys and values (2, B, G, T, C), visual at image tokens of this call, textual at text."""
        assert sequence.inputs is not None
        text: torch.Tensor = self.textual.keys_and_values(sequence.inputs, rope)
        if sequence.is_image is None:
            return text
        image = self.visual.keys_and_values(sequence.inputs, rope)
        return torch.where(sequence.is_image[:, None, :, None], image, text)

    def router_weights(self, rows_BTS: torch.Tensor, sequence: SequenceState) -> torch.Tensor:
        """Two weights for each token (B, T, 2), the first for the visual attention.

        A column is a token's index among the real tokens of its row, so that padding has no effect.

        Args:
            rows_BTS: The block's own attention weights, summed over heads; of the last S tokens.
            sequence: State of this call.
        """
        weight, columns = self.router.weight, self.router.in_features
        width = rows_BTS.shape[2]
        begin = max(sequence.length - width, 0)
        column_BS = torch.arange(begin, begin + width, device=weight.device)[None]
        column_BS = column_BS - sequence.first.to(weight.device)[:, None]
        is_read = (column_BS >= 0) & (column_BS < columns)
        read = weight[:, column_BS.clamp(0, columns - 1)].masked_fill(~is_read, 0)
        scores = torch.einsum("bts,rbs->btr", rows_BTS.to(weight.dtype), read) + self.router.bias
        return nn.functional.silu(scores).softmax(dim=-1)


def _zero_linear(
    inputs: int, outputs: int, device: torch.device, *, bias: bool = False
) -> nn.Linear:
    layer: nn.Linear = nn.utils.skip_init(
        nn.Linear, inputs, outputs, bias=bias, device=device, dtype=torch.float32
    )
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
