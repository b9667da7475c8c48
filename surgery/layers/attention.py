"""Attention weights of any family's attention, recorded from outside without rewriting its code.

Shapes: B rows, H heads, T tokens of this call, S attended tokens, C width of a head.
"""

from typing import Any, Final

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError

_CHUNK: Final = 256
"""Queries per chunk, whose weights are in memory at once for all heads."""


class AttentionRecorder(TorchFunctionMode):
    """Records the last call of PyTorch's attention in this thread, while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self._last_call: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call every function unchanged; see `TorchFunctionMode`."""
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            self._last_call = args, kwargs
        return func(*args, **kwargs)

    def rows(self, tokens: int, weights: torch.Tensor | None) -> torch.Tensor:
        """Return each token's attention weights (B, T, S), summed over the heads, in fp32 or wider.

        Args:
            tokens: T.
            weights: (B, H, T, S), where the attention itself returns them, as `eager` does.

        Raises:
            SurgeryError: A413, where neither weights nor queries and keys can be observed.
        """
        if weights is not None:
            return weights.to(_wide(weights)).sum(dim=1)
        if self._last_call is None:
            raise SurgeryError(diagnostic("A413"))
        args, kwargs = self._last_call
        return _summed(tokens, *args, **kwargs)


def _summed(
    tokens: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """Softmax of the scores, summed over heads; arguments are those of PyTorch's attention.

    transformers packs the heads of a group into the dimension of the tokens where there is one
    token.
    """
    rows, _, _, width = query.shape
    q_BHTC = query.reshape(rows, -1, tokens, width)
    k_BHSC = key.repeat_interleave(q_BHTC.shape[1] // key.shape[1], dim=1)
    if is_causal:
        attn_mask = query.new_ones(tokens, key.shape[2], dtype=torch.bool).tril()
    elif attn_mask is not None and attn_mask.dim() == 4 and attn_mask.shape[1] > 1:
        attn_mask = attn_mask.reshape(attn_mask.shape[0], -1, tokens, attn_mask.shape[3])
    scale = width**-0.5 if scale is None else scale
    parts = []
    for start in range(0, tokens, _CHUNK):
        chosen = slice(start, start + _CHUNK)
        scores = (q_BHTC[:, :, chosen] @ k_BHSC.transpose(2, 3)).to(_wide(query)) * scale
        mask = attn_mask[..., chosen, :] if attn_mask is not None else None
        parts.append(_masked(scores, mask).softmax(dim=-1).sum(dim=1))
    return torch.cat(parts, dim=1)


def _wide(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _masked(scores_BHTS: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    if mask is None:
        return scores_BHTS
    if mask.dtype == torch.bool:
        return scores_BHTS.masked_fill(~mask, torch.finfo(scores_BHTS.dtype).min)
    return scores_BHTS + mask


def attend(
    q_BHTC: torch.Tensor, k_BGSC: torch.Tensor, v_BGSC: torch.Tensor, mask_BTS: torch.Tensor
) -> torch.Tensor:
    """Softmax attention (B, T, H x C); exactly zero for a token that may attend to nothing.

    Args:
        q_BHTC: Queries.
        k_BGSC: Keys of G heads, each for H / G heads of queries.
        v_BGSC: Values.
        mask_BTS: Bool, True where a token may attend.
    """
    attends_BT = mask_BTS.any(dim=-1)
    mask = (mask_BTS | ~attends_BT[..., None]).unsqueeze(1)
    is_grouped = k_BGSC.shape[1] != q_BHTC.shape[1]
    out = functional.scaled_dot_product_attention(
        q_BHTC, k_BGSC, v_BGSC, attn_mask=mask, enable_gqa=is_grouped
    )
    return out.transpose(1, 2).flatten(2).masked_fill(~attends_BT[..., None], 0)


def rotate(x_BHTC: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Apply rotary embeddings by halves; dimensions of a head beyond theirs are unchanged.

    Args:
        x_BHTC: Queries or keys.
        rope: Cosine and sine, (B or 1, T, rotated dimensions), as the model's own attention gets
            them.

    Source: RoFormer (arXiv 2104.09864), in the order of halves that Llama has.
    """
    cos, sin = (part.unsqueeze(1).to(x_BHTC.dtype) for part in rope)
    rotated, passed = x_BHTC[..., : cos.shape[-1]], x_BHTC[..., cos.shape[-1] :]
    first, second = rotated.chunk(2, dim=-1)
    rotated = rotated * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((rotated, passed), dim=-1)
