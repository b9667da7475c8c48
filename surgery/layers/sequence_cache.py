"""State of the sequence that a call continues, computed once for all learners.

Shapes: B rows, T tokens of this call, S tokens so far, D width of the hidden state.
"""

import functools
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.layers.call_state import CallState
from surgery.layers.image_tokens import cached_tokens, image_tokens
from surgery.layers.routing import register_input_ids
from surgery.operations.edits import RoutingRule

PADDING: Final = 0
TEXT_TOKEN: Final = 1
IMAGE_TOKEN: Final = 2


@dataclass
class SequenceState:
    """One call, and what its cache has of the calls before.

    Args:
        first: (B,) index of each row's first real token.
        length: S.
        text: (B, T, S), bool, True where a token may attend to a text token.
        image: The same for image tokens; None where no row has any so far.
        is_image: (B, T), bool; None where no token of this call is an image token.
        cache: Cache of transformers, or None.
        inputs: (B, T, D), input of the first block.
        residuals: Residual input of each block's attention, by block.
        sums: Expected sum of residual and attention output, by block, until it is checked.
    """

    first: torch.Tensor
    length: int
    text: torch.Tensor
    image: torch.Tensor | None
    is_image: torch.Tensor | None
    cache: Any = None
    inputs: torch.Tensor | None = None
    residuals: dict[int, torch.Tensor] = field(default_factory=dict)
    sums: dict[int, torch.Tensor] = field(default_factory=dict)

    def append_keys_values(
        self, layer: int, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values (B, heads, T, width) to the cache, and return all of them."""
        if self.cache is None:
            return keys, values
        known: tuple[torch.Tensor, torch.Tensor] = _layer(self.cache, layer).update(keys, values)
        return known


_SEQUENCE: Final = CallState[SequenceState]("sequence")

sequence_of = _SEQUENCE.read
"""State of a model's current call; None on the text path."""


def register_sequence(
    base: Any, decoder: Any, blocks: Any, learner: Any, rule: RoutingRule, token: int | None
) -> None:
    """Hook a decoder so that it computes its sequence state at the beginning of each call.

    Args:
        base: The complete model, which may have the ids where the decoder has only embeddings.
        decoder: The module that contains the blocks, which is hooked.
        blocks: The blocks in order.
        learner: One of the model's learners, which knows whether they are active.
        rule: How image tokens are found.
        token: Id of an image token, of the rule or of the model's config; None if unknown.
    """
    register_input_ids(base, decoder, learner)
    begin = functools.partial(_begin, learner, rule, token, len(blocks))
    decoder.register_forward_pre_hook(begin, with_kwargs=True)
    take = functools.partial(_take_inputs, learner)
    blocks[0].register_forward_pre_hook(take, with_kwargs=True)
    decoder.register_forward_hook(functools.partial(_end, learner), always_call=True)


def _begin(
    learner: Any,
    rule: RoutingRule,
    token: int | None,
    layer: int,
    decoder: Any,
    args: Any,
    kwargs: Any,
) -> Any:
    if not learner.is_active:
        _SEQUENCE.write(learner._switch, None)
        return None
    ids = kwargs.get("input_ids", args[0] if args else None)
    tokens = ids if ids is not None else kwargs["inputs_embeds"]
    kwargs = _with_cache(decoder, kwargs)
    cached = cached_tokens(kwargs)
    image = image_tokens(learner._switch, rule, token, ids, tokens.shape[:2], cached)
    image = image.to(tokens.device)
    real = _real_tokens(kwargs.get("attention_mask"), image, cached)
    kinds = torch.where(real, torch.where(image, IMAGE_TOKEN, TEXT_TOKEN), PADDING)
    cache = None if _recomputes(decoder) else kwargs.get("past_key_values")
    _SEQUENCE.write(learner._switch, _sequence(kinds, cache, layer, cached))
    return args, kwargs


def _sequence(kinds_BT: torch.Tensor, cache: Any, layer: int, cached: int) -> SequenceState:
    """State from the kinds of this call's tokens and, in the cache, of those before."""
    kinds_BS = kinds_BT
    if cache is not None:
        flags = kinds_BT[:, None, :, None].to(torch.uint8)
        kinds_BS = _layer(cache, layer).update(flags, flags)[0][:, 0, :, 0].long()
    length, tokens = kinds_BS.shape[1], kinds_BT.shape[1]
    if cached + tokens != length:
        raise SurgeryError(diagnostic("A408.other_cache", cached=cached, known=length - tokens))
    earlier = kinds_BS.new_ones(tokens, length, dtype=torch.bool).tril(length - tokens)
    is_image_BS = kinds_BS == IMAGE_TOKEN
    is_image_BT = is_image_BS[:, length - tokens :]
    return SequenceState(
        first=(kinds_BS != PADDING).int().argmax(dim=1),
        length=length,
        text=(kinds_BS == TEXT_TOKEN)[:, None] & earlier,
        image=is_image_BS[:, None] & earlier if bool(is_image_BS.any()) else None,
        is_image=is_image_BT if bool(is_image_BT.any()) else None,
        cache=cache,
    )


def _end(learner: Any, decoder: Any, args: Any, output: Any) -> None:
    _SEQUENCE.write(learner._switch, None)


def _take_inputs(learner: Any, block: Any, args: Any, kwargs: Any) -> None:
    sequence = sequence_of(learner._switch)
    if sequence is not None:
        sequence.inputs = args[0] if args else kwargs["hidden_states"]


def _with_cache(decoder: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Create the cache that the decoder would create, so that learners can write to it."""
    asked = kwargs.get("use_cache")
    wanted = getattr(decoder.config, "use_cache", False) if asked is None else asked
    if not wanted or _recomputes(decoder) or kwargs.get("past_key_values") is not None:
        return kwargs
    from transformers import DynamicCache

    return {**kwargs, "past_key_values": DynamicCache(config=decoder.config)}


def _recomputes(decoder: Any) -> bool:
    """Whether blocks are checkpointed, in which case transformers runs them without a cache."""
    return decoder.training and any(
        getattr(module, "gradient_checkpointing", False) for module in decoder.modules()
    )


def _layer(cache: Any, layer: int) -> Any:
    """A cache layer after the model's own: operations on the cache apply to it too."""
    from transformers.cache_utils import DynamicLayer

    while len(cache.layers) <= layer:
        cache.layers.append(DynamicLayer())
    return cache.layers[layer]


def _real_tokens(attention: Any, image_BT: torch.Tensor, cached: int) -> torch.Tensor:
    """Bool (B, T), False at padding."""
    if attention is None:
        return torch.ones_like(image_BT)
    if not isinstance(attention, torch.Tensor) or attention.dim() != 2:
        raise SurgeryError(diagnostic("A414"))
    return attention[:, cached : cached + image_BT.shape[1]].to(image_BT.device).bool()
