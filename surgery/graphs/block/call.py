"""How a decoder calls one of its blocks, found by letting it begin a step.

Masks, rotary embeddings and whatever else a family passes are then what its own code makes of
them, as real numbers; no family's code is written again. Blocks before it are passed over.

Shapes: T tokens of the step, W tokens in the cache, D width of the hidden state.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import torch
from torch.utils import _pytree as pytree

from surgery.graphs.block.forms import Shape
from surgery.graphs.block.kv_cache import NoKeysError, StepCache

_LOWEST: Final = -1e4  # of a mask: e to that is 0 in fp16 too, which has no -1e38
_NAMES: Final = {
    "hidden_states": "hidden",
    "attention_mask": "mask",
    "position_embeddings.0": "cos",
    "position_embeddings.1": "sin",
}
ANSWERS: Final[tuple[Callable[[torch.Tensor], Any], ...]] = (
    lambda hidden: hidden,
    lambda hidden: (hidden,),
    lambda hidden: (hidden, None),
    lambda hidden: (hidden, None, None),
)
"""What blocks return, in transformers 5: the hidden state, or a tuple that begins with it."""


@dataclass(frozen=True)
class InputSlot:
    """Stands in a call for a tensor that the graph takes as an input."""

    name: str


@dataclass(frozen=True)
class Call:
    """One call of a block.

    Args:
        arguments: positional and named ones, a `Slot` for each tensor, a `StepCache` for the cache.
        tensors: by their inputs' names; `hidden` (1, T, D) first.
        cached: shapes of the keys and values that the block caches of this step, (1, K, T, C) in
            most families; empty for a block without a cache.
    """

    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    tensors: dict[str, torch.Tensor]
    cached: tuple[torch.Size, ...] = ()

    def fill(
        self, tensors: dict[str, torch.Tensor], cache: StepCache | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with tensors for slots, and this cache for the other."""
        return pytree.tree_map(partial(_filled, tensors, cache), self.arguments)  # type: ignore[no-any-return]


class _BlockReached(BaseException):
    """Carries the arguments out of the decoder, past any handler on the way."""

    def __init__(self, arguments: tuple[Any, dict[str, Any]]) -> None:
        self.arguments = arguments


def find_call(decoder: Any, blocks: Any, index: int, shape: Shape, width: int) -> Call:
    """Return how a decoder calls its block `index` in a step of this shape.

    Args:
        decoder: a transformers model around the blocks; all of it but them is on the CPU.
        blocks: on any device; none of them runs but the one, on the meta device.
        index: of the block.
        shape: of the step.
        width: D.

    Raises:
        NoKeysError: where the block keeps something else than keys and values.
        Exception: whatever the decoder raises where the call is none that it takes, or where no
            way of passing over the blocks before it leads there.
    """
    hidden = torch.randn(1, shape.tokens, width, generator=torch.Generator().manual_seed(0))
    ids = torch.zeros(1, shape.tokens, dtype=torch.long)
    failed: Exception | None = None
    for given in ({"inputs_embeds": hidden}, {"input_ids": ids}):  # Gemma 4 wants ids too
        reach = partial(_reach, decoder, blocks, shape, given)
        try:
            first = reach(0, ANSWERS[0])
            call = first if index == 0 else _after(reach, index, first.tensors["hidden"].shape)
            return replace(call, cached=_cached(blocks[index], call, shape.window))
        except NoKeysError:
            raise
        except Exception as error:
            failed = failed or error
    assert failed is not None
    raise failed


def _after(reach: Callable[..., Call], index: int, hidden: torch.Size) -> Call:
    """Reach a block behind others; the hidden state tells whether they were passed over rightly."""
    failed: Exception | None = None
    for answer in ANSWERS:
        try:
            call = reach(index, answer)
        except Exception as error:
            failed = failed or error
            continue
        if call.tensors["hidden"].shape == hidden:
            return call
    raise failed or ValueError("no known answer of the blocks before it leads there")


def _reach(
    decoder: Any,
    blocks: Any,
    shape: Shape,
    given: dict[str, torch.Tensor],
    index: int,
    answer: Callable[[torch.Tensor], Any],
) -> Call:
    def reached(block: Any, args: Any, kwargs: Any) -> None:
        raise _BlockReached((args, kwargs))

    hook = blocks[index].register_forward_pre_hook(reached, with_kwargs=True)
    try:
        with torch.no_grad(), _passed_over(blocks[:index], answer):
            decoder(**given, past_key_values=StepCache(shape.window), use_cache=True)
    except _BlockReached as found:
        return named_call(found.arguments, blocks[index])
    finally:
        hook.remove()
    raise ValueError("the decoder never calls this block")


def _cached(block: Any, call: Call, window: int) -> tuple[torch.Size, ...]:
    """Run the block on the meta device; what fails after its attention is ignored."""
    cache = StepCache(window)
    args, kwargs = call.fill({name: t.to("meta") for name, t in call.tensors.items()}, cache)
    try:
        with torch.no_grad():
            block(*args, **kwargs)
    except NoKeysError:
        raise
    except Exception:
        if not cache.is_filled:
            raise
    return tuple(tensor.shape for tensor in cache.new)


@contextmanager
def _passed_over(blocks: Any, answer: Callable[[torch.Tensor], Any]) -> Iterator[None]:
    def skip(*args: Any, **kwargs: Any) -> Any:
        return answer(args[0] if args else kwargs["hidden_states"])

    for block in blocks:
        block.forward = skip
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def named_call(arguments: tuple[Any, dict[str, Any]], block: Any) -> Call:
    """Put slots for the tensors of a call, named by the parameters of the block's `forward`.

    Args:
        arguments: positional and named ones; the first tensor is the hidden state.
        block: that is called.
    """
    parameters = [p.name for p in inspect.signature(type(block).forward).parameters.values()][1:]
    leaves, spec = pytree.tree_flatten_with_path(arguments)
    tensors: dict[str, torch.Tensor] = {}
    slots = []
    for path, leaf in leaves:  # the first is the hidden state, whatever its name
        name = _name(path, parameters) if tensors else "hidden"
        slots.append(_slot(name, leaf, tensors))
    return Call(pytree.tree_unflatten(slots, spec), tensors)


def _slot(name: str, leaf: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    known = next((other for other, tensor in tensors.items() if tensor is leaf), None)
    if known is None:
        tensors[name] = _finite(leaf) if name == "mask" else leaf
    return InputSlot(known or name)


def _name(path: Any, parameters: list[str]) -> str:
    """A dotted name from a path such as (0, 0) or (1, "position_embeddings", 1)."""
    keys: list[Any] = [getattr(key, "key", getattr(key, "idx", None)) for key in path]
    part, first, *others = keys
    if part == 0:
        first = parameters[first] if first < len(parameters) else f"argument{first}"
    name = ".".join(map(str, (first, *others)))
    return _NAMES.get(name, name.replace(".", "_"))


def _finite(mask: torch.Tensor) -> torch.Tensor:
    return mask.clamp(min=_LOWEST) if mask.is_floating_point() else mask


def _filled(tensors: dict[str, torch.Tensor], cache: StepCache | None, leaf: Any) -> Any:
    if isinstance(leaf, InputSlot):
        return tensors[leaf.name]
    return cache if isinstance(leaf, StepCache) else leaf
