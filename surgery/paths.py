"""The text and the multimodal path of one model: by context, by call, and by row of a batch.

The path lives in a `ContextVar`, so that it nests, ends with its block even when that raises, and
is each thread's own. PEFT's wrappers ask `disable_adapters` on every call; ours answer by the path.
Outside of any context a model is on the multimodal path. A checkpointed block is computed again by
the backward pass, outside of the context and perhaps in a thread of autograd, so it takes the path
of its forward pass along.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

from surgery.diagnostic import Diagnostic, SurgeryError

if TYPE_CHECKING:
    from torch import nn

PathName = Literal["text", "multimodal"]
TEXT: Final = "text"
MULTIMODAL: Final = "multimodal"


_BASE_MODULES: Final = ("base_layer", "original_module")
"""What PEFT's LoRA layers and its wrappers of whole modules call the base's own module."""

_switched: Final[dict[type, type]] = {}


class Switch:
    """What the wrappers of one model share: the key under which the context holds its path."""

    @property
    def path(self) -> PathName:
        """The path in this context."""
        return _paths.get().get(self, MULTIMODAL)


_paths: ContextVar[Mapping[Switch, PathName]] = ContextVar(
    "surgery_paths", default=MappingProxyType({})
)


class SwitchedLayer:
    """Mixed into a PEFT layer or wrapper: it is disabled along the text path."""

    _switch: Switch

    @property
    def disable_adapters(self) -> bool:
        """Whether only the base takes part: along the text path, or where PEFT was told so."""
        return self._switch.path == TEXT or bool(super().disable_adapters)  # type: ignore[misc]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Go straight to the base's module along the text path, and PEFT's way otherwise."""
        if self._switch.path == TEXT:
            modules = vars(self)["_modules"]  # spares the slow way of Module.__getattr__
            for name in _BASE_MODULES:
                if name in modules:
                    kwargs.pop("adapter_names", None)
                    return modules[name](*args, **kwargs)
        return super().forward(*args, **kwargs)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _remake, (SwitchedLayer, type(self).__bases__[1]), vars(self)


class SwitchedModel:
    """Mixed into a PEFT model: `forward` and `generate` take a path for each row of the batch."""

    _switch: Switch

    def forward(self, *args: Any, paths: Sequence[PathName] | None = None, **kwargs: Any) -> Any:
        """Run the model.

        Args:
            args: as the model's own.
            paths: `text` or `multimodal` for each row; all rows take the context's path without.
            kwargs: as the model's own; tensors have the batch first.
        """
        if paths is None:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        from surgery.rows import forward_rows

        return forward_rows(self, paths, args, kwargs)

    def generate(self, *args: Any, paths: Sequence[PathName] | None = None, **kwargs: Any) -> Any:
        """Generate; arguments as for `forward`.

        Returns:
            Token ids (rows, length), shorter rows filled up with the padding token.
        """
        if paths is None:
            return super().generate(*args, **kwargs)  # type: ignore[misc]
        from surgery.rows import generate_rows

        return generate_rows(self, paths, args, kwargs)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Do as PEFT does, and freeze again afterwards what PEFT would leave trainable."""
        parameters: Any = list(self.parameters())  # type: ignore[attr-defined]
        trains = [parameter.requires_grad for parameter in parameters]
        try:
            with super().disable_adapter():  # type: ignore[misc]
                yield
        finally:
            for parameter, required in zip(parameters, trains, strict=True):
                parameter.requires_grad_(required)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _remake, (SwitchedModel, type(self).__bases__[1]), vars(self)


@contextmanager
def text_path(model: "nn.Module") -> Iterator[None]:
    """Run a model as its untouched base: copies swapped out, LoRA off.

    Args:
        model: what `apply_plan` or `load_adapter` returned, also inside a wrapper such as DDP.

    Raises:
        SurgeryError: A405, if the model has no paths; A406, if its LoRA is merged into the base.
    """
    switch = _switch_of(model)
    _refuse_merged(model)
    with use_path(switch, TEXT):
        yield


@contextmanager
def multimodal_path(model: "nn.Module") -> Iterator[None]:
    """Run a model with its copies swapped in and LoRA on, as it does by default.

    Args:
        model: as for `text_path`.

    Raises:
        SurgeryError: A405, if the model has no paths.
    """
    with use_path(_switch_of(model), MULTIMODAL):
        yield


@contextmanager
def use_path(switch: Switch, path: PathName) -> Iterator[None]:
    """Set the path of one switch for a while."""
    token = _paths.set(MappingProxyType({**_paths.get(), switch: path}))
    try:
        yield
    finally:
        _paths.reset(token)


def make_switchable(peft_model: Any, decoder_path: str) -> None:
    """Let a PEFT model follow the path of the context.

    Each layer's class becomes a subclass that adds one property, as `torch.nn.utils.parametrize`
    and FSDP2's `fully_shard` do it; so quantised and future LoRA layers switch as well.

    Args:
        peft_model: changed in place.
        decoder_path: module name of what holds the list of blocks, such as `model`.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    switch = Switch()
    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    layers = [module for module in peft_model.modules() if isinstance(module, kinds)]
    for layer in layers:
        layer.__class__ = _with_mixin(SwitchedLayer, type(layer))
        layer._switch = switch
    peft_model.__class__ = _with_mixin(SwitchedModel, type(peft_model))
    peft_model._switch = switch
    decoder = peft_model.get_base_model().get_submodule(decoder_path)
    for earlier in vars(decoder).get("_surgery_hooks", ()):
        earlier.remove()  # of an adapter that was on this base before
    decoder._surgery_hooks = (
        decoder.register_forward_pre_hook(partial(_check_cache, layers[0]), with_kwargs=True),
        decoder.register_forward_pre_hook(partial(_carry_path, layers[0])),
        decoder.register_forward_hook(partial(_mark_cache, layers[0])),
    )


def _with_mixin(mixin: type, cls: Any) -> Any:
    """Return the subclass of `cls` that `mixin` comes first in, made once."""
    if cls not in _switched:
        _switched[cls] = type(f"Switched{cls.__name__}", (mixin, cls), {})
    return _switched[cls]


def _remake(mixin: type, cls: type) -> Any:
    """Begin a pickled or copied object, whose class has no name to be found by."""
    made = _with_mixin(mixin, cls)
    return made.__new__(made)


def _check_cache(layer: SwitchedLayer, decoder: Any, args: Any, kwargs: dict[str, Any]) -> None:
    """Refuse to go on with a cache that the other path has filled."""
    cache = kwargs.get("past_key_values")
    if cache is None:
        return
    if hasattr(cache, "paths"):
        raise SurgeryError(_cache_of_rows(cache.paths))
    path, used = _path_of(layer), getattr(cache, "_surgery_path", None)
    if used not in (None, path) and cache.get_seq_length() > 0:
        raise SurgeryError(_cache_of_other_path(str(used), path))
    cache._surgery_path = path


def _mark_cache(layer: SwitchedLayer, decoder: Any, args: Any, output: Any) -> None:
    cache = getattr(output, "past_key_values", None)
    if cache is not None:
        cache._surgery_path = _path_of(layer)


def _carry_path(layer: SwitchedLayer, decoder: Any, args: Any) -> None:
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
    """Checkpoint a function so that it runs on today's path whenever it is computed again."""
    path = _path_of(layer)

    def on_path(*args: Any) -> Any:
        with use_path(layer._switch, path):
            return function(*args)

    return checkpoint(on_path, *args)


def _path_of(layer: SwitchedLayer) -> PathName:
    return TEXT if layer.disable_adapters else MULTIMODAL


def _switch_of(model: "nn.Module") -> Switch:
    for module in model.modules():
        if isinstance(module, (SwitchedModel, SwitchedLayer)):
            return module._switch
    raise SurgeryError(_no_paths(model))


def _refuse_merged(model: "nn.Module") -> None:
    merged = next((n for n, m in model.named_modules() if getattr(m, "merged", False)), None)
    if merged is not None:
        raise SurgeryError(_is_merged(merged))


def _no_paths(model: "nn.Module") -> Diagnostic:
    return Diagnostic(
        code="A405",
        what=f"this {type(model).__name__} has no text and multimodal path",
        why="paths belong to a model from `apply_plan` or `load_adapter`; a recipe that trains the "
        "base in place has only the stored original as its text path",
        fix="open the adapter with `load_adapter`, or load the original base for text",
    )


def _is_merged(name: str) -> Diagnostic:
    return Diagnostic(
        code="A406",
        what="the text path is gone: LoRA is merged into the base",
        why=f"`{name}` and others hold the sum of base and LoRA, which rounding keeps from coming "
        "apart bit for bit",
        fix="open the adapter again and don't call `merge_adapter`",
    )


def _cache_of_other_path(used: str, path: str) -> Diagnostic:
    return Diagnostic(
        code="A408",
        what=f"this sequence began on the {used} path and can't go on on the {path} path",
        why="its cached keys and values were computed by other weights",
        fix=f"stay on the {used} path, or run the whole sequence again without the cache",
    )


def _cache_of_rows(paths: Sequence[str]) -> Diagnostic:
    return Diagnostic(
        code="A408",
        what="this batch began with a path for each row and can't go on without",
        why="it has one cache for the rows of each path",
        fix=f"call the model with `paths={list(paths)}` again",
    )
