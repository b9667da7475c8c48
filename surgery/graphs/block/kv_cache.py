"""The key-value cache of one block in one step: past in, past and new to the attention, new out.

Shapes: K heads of keys, W tokens before the step, T tokens of it, C width of a head.
"""

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

Pair = tuple[torch.Tensor, torch.Tensor]


class NoKeysError(AttributeError):
    """A block that keeps something else than keys and values; what its cache hasn't got."""


class StepCache(Cache):
    """Stands for the complete model's cache while one block runs.

    Args:
        window: W.
        past: keys and values (1, K, W, C) of what came before; zeros of the shape that the block
            asks for where None.
    """

    def __init__(self, window: int, past: Pair | None = None) -> None:
        self._layer = _StepLayer(window, past)
        super().__init__(layers=[self._layer] * 1024)  # whichever number a block has

    @property
    def is_filled(self) -> bool:
        """Whether the block has cached anything yet."""
        return bool(self._layer.new)

    @property
    def new(self) -> Pair:
        """Keys and values (1, K, T, C) of the step's own tokens.

        Raises:
            NoKeysError: where the block cached nothing, or more than once.
        """
        if len(self._layer.new) != 1:
            count = len(self._layer.new)
            raise NoKeysError(f"it caches {count} pairs of keys and values, and not one")
        return self._layer.new[0]

    def has_previous_state(self, *args: Any, **kwargs: Any) -> bool:
        """Whether anything came before; asked of hybrids' other blocks."""
        return self._layer.window > 0

    def get_conv_state(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse; see `NoKeysError`."""
        raise NoKeysError("it keeps a convolution's state, not keys and values")

    def update_conv_state(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse; see `NoKeysError`."""
        raise NoKeysError("it keeps a convolution's state, not keys and values")

    def get_recurrent_state(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse; see `NoKeysError`."""
        raise NoKeysError("it keeps a recurrent state, not keys and values")

    def update_recurrent_state(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse; see `NoKeysError`."""
        raise NoKeysError("it keeps a recurrent state, not keys and values")

    def update_indexer(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse; see `NoKeysError`."""
        raise NoKeysError("it caches the keys of an indexer alongside its own")


class _StepLayer(CacheLayerMixin):
    is_sliding = False

    def __init__(self, window: int, past: Pair | None) -> None:
        super().__init__()
        self.window = window
        self.past = past
        self.new: list[Pair] = []

    def __getattr__(self, name: str) -> Any:
        raise NoKeysError(f"it keeps more than keys and values: it asks its cache for `{name}`")

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Pair:
        self.new.append((key_states, value_states))
        if self.window == 0:
            return key_states, value_states
        past = self.past or (_zeros(key_states, self.window), _zeros(value_states, self.window))
        return torch.cat((past[0], key_states), -2), torch.cat((past[1], value_states), -2)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.window + query_length, 0

    def get_seq_length(self) -> int:
        return self.window

    def get_max_length(self) -> int:
        return -1


def _zeros(new: torch.Tensor, window: int) -> torch.Tensor:
    return new.new_zeros(*new.shape[:-2], window, new.shape[-1])
