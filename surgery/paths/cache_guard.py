"""Hooks of a decoder: its cache stays on one path, and gradient checkpoints keep theirs.

Outside of any context a model is on the multimodal path. The backward pass recomputes a
checkpointed block outside of the context, perhaps in a thread of autograd, so the block keeps the
path and the routing of its forward pass.
"""

from contextvars import copy_context
from functools import partial
from typing import Any, Final

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.paths.path_state import SwitchedLayer, path_of, use_path

_CACHES: Final = ("past_key_values", "cache_params")
"""Names of the cache in outputs and arguments of decoders; Mamba's is the second."""


def register_path_hooks(decoder: Any, layer: SwitchedLayer) -> None:
    """Hook a decoder; hooks of an earlier adapter on this base are removed.

    Args:
        decoder: The module that contains the list of blocks.
        layer: Any switched layer of the model.
    """
    for earlier in vars(decoder).get("_surgery_hooks", ()):
        earlier.remove()
    decoder._surgery_hooks = (
        decoder.register_forward_pre_hook(partial(_check_cache, layer), with_kwargs=True),
        decoder.register_forward_pre_hook(partial(_keep_path_in_checkpoints, layer)),
        decoder.register_forward_hook(partial(_mark_cache, layer)),
    )


def _check_cache(layer: SwitchedLayer, decoder: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Refuse to continue with a cache that was filled on the other path."""
    cache = next((kwargs[name] for name in _CACHES if kwargs.get(name) is not None), None)
    if cache is None:
        return
    if hasattr(cache, "paths"):
        raise SurgeryError(diagnostic("A408.rows", paths=str(list(cache.paths))))
    path, used = path_of(layer), getattr(cache, "_surgery_path", None)
    if used not in (None, path) and _is_filled(cache):
        raise SurgeryError(diagnostic("A408.other_path", used=str(used), path=path))
    cache._surgery_path = path


def _mark_cache(layer: SwitchedLayer, decoder: Any, args: Any, output: Any) -> None:
    caches = (getattr(output, name, None) for name in _CACHES)
    for cache in caches:
        if cache is not None:
            cache._surgery_path = path_of(layer)


def _is_filled(cache: Any) -> bool:
    """Whether a cache contains anything; one of state-space blocks alone doesn't tell."""
    try:
        return bool(cache.get_seq_length() > 0)
    except ValueError:
        return True


def _keep_path_in_checkpoints(layer: SwitchedLayer, decoder: Any, args: Any) -> None:
    """Wrap the checkpoint function of each block, which transformers may set at any time."""
    if not decoder.training:
        return
    for module in decoder.modules():
        checkpoint = vars(module).get("_gradient_checkpointing_func")
        if getattr(checkpoint, "func", None) is _checkpoint:
            checkpoint = checkpoint.args[1]  # wrapped before, perhaps for an earlier adapter
        if checkpoint is not None:
            module._gradient_checkpointing_func = partial(_checkpoint, layer, checkpoint)


def _checkpoint(layer: SwitchedLayer, checkpoint: Any, function: Any, *args: Any) -> Any:
    """Checkpoint a function so that it is recomputed on the current path and routing."""
    path, context = path_of(layer), copy_context()

    def on_path(*args: Any) -> Any:
        with use_path(layer._switch, path):
            return function(*args)

    return checkpoint(lambda *args: context.copy().run(on_path, *args), *args)
