"""The text and the multimodal path of one model: by context, by call, and by row of a batch."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.layers.class_mixin import reduce_mixin, with_mixin
from surgery.paths.cache_guard import register_path_hooks
from surgery.paths.path_state import (
    MULTIMODAL,
    TEXT,
    PathName,
    Switch,
    SwitchedLayer,
    no_paths,
    use_path,
)

if TYPE_CHECKING:
    from torch import nn


class SwitchedModel:
    """Mixin of a PEFT model: `forward` and `generate` take a path for each row of the batch."""

    _switch: Switch
    _save_plan: "Callable[[Any, Path], None] | None" = None
    """Writes what a folder needs besides PEFT's files for `load_adapter` to open it."""

    def forward(self, *args: Any, paths: Sequence[PathName] | None = None, **kwargs: Any) -> Any:
        """Run the model.

        Args:
            args: Positional arguments of the model.
            paths: `text` or `multimodal` for each row; by default all rows are on the context's
                path.
            kwargs: Arguments of the model; tensors have the batch as first dimension.
        """
        if paths is None:
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        from surgery.paths.batch_rows import forward_rows

        return forward_rows(self, paths, args, kwargs)

    def generate(self, *args: Any, paths: Sequence[PathName] | None = None, **kwargs: Any) -> Any:
        """Generate; arguments as for `forward`.

        Returns:
            Token ids (rows, length), shorter rows padded on the right.
        """
        if paths is None:
            return super().generate(*args, **kwargs)  # type: ignore[misc]
        from surgery.paths.batch_rows import generate_rows

        return generate_rows(self, paths, args, kwargs)

    def text_path(self) -> AbstractContextManager[None]:
        """Run as the untouched base; see `surgery.text_path`."""
        return text_path(self)  # type: ignore[arg-type]

    def multimodal_path(self) -> AbstractContextManager[None]:
        """Run with copies swapped in and LoRA on; see `surgery.multimodal_path`."""
        return multimodal_path(self)  # type: ignore[arg-type]

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save as PEFT does, with the plan, so that `surgery.load_adapter` opens the folder.

        Args:
            save_directory: Folder; what it has of these files is replaced.
            kwargs: Arguments of PEFT's own.
        """
        self.save_weights(save_directory, **kwargs)
        if self._save_plan is not None and kwargs.get("is_main_process", True):
            self._save_plan(self, Path(save_directory))

    def save_weights(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save as PEFT does, without the plan; arguments as for `save_pretrained`."""
        # else PEFT asks the hub whether the vocabulary grew, and adds embeddings if it can't tell
        options = {"save_embedding_layers": False, **kwargs}
        super().save_pretrained(os.fspath(save_directory), **options)  # type: ignore[misc]

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Run as the base on the text path, where PEFT would disable the layers for all threads.

        A thread that is started inside is not affected, as with `text_path`. Without a text path,
        or once LoRA is merged, it does as PEFT does, for all threads, and afterwards freezes what
        PEFT would leave trainable.
        """
        if self._switch.has_text_path and self._switch.fixed is None and _merged(self) is None:
            with use_path(self._switch, TEXT):
                yield
            return
        parameters: Any = list(self.parameters())  # type: ignore[attr-defined]
        trains = [parameter.requires_grad for parameter in parameters]
        try:
            with super().disable_adapter():  # type: ignore[misc]
                yield
        finally:
            for parameter, required in zip(parameters, trains, strict=True):
                parameter.requires_grad_(required)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return reduce_mixin(SwitchedModel, self)


@contextmanager
def text_path(model: "nn.Module") -> Iterator[None]:
    """Run a model as its untouched base: copies swapped out, LoRA disabled.

    The path belongs to the context, as a `ContextVar` does: other threads and tasks keep theirs,
    and a thread that is started inside begins on the multimodal path. To pass the path on, start it
    with `contextvars.copy_context().run`.

    Logits are the base's bit for bit where both are computed alike: with as many threads and rows,
    and with weights that require no gradients in either (torch picks its kernels by that flag, and
    `from_pretrained` sets it, so compare with `base.requires_grad_(False)`).

    Args:
        model: The model that `apply_plan` or `load_adapter` returned, also inside a wrapper such as
            DDP.

    Raises:
        SurgeryError: A405, if the model has no paths; A406, if its LoRA is merged into the base.
    """
    switch = switch_of(model)
    if not switch.has_text_path:
        raise SurgeryError(no_paths(model))
    _refuse_merged(model)
    with use_path(switch, TEXT):
        yield


@contextmanager
def multimodal_path(model: "nn.Module") -> Iterator[None]:
    """Run a model with its copies swapped in and LoRA enabled, as by default.

    Args:
        model: As for `text_path`.

    Raises:
        SurgeryError: A405, if the model has no paths.
    """
    with use_path(switch_of(model), MULTIMODAL):
        yield


def make_switchable(peft_model: Any, decoder_path: str, mixin: type | None = None) -> Switch:
    """Let a PEFT model follow the path of the context.

    Each layer's class becomes a subclass with one more property, so that quantized and future LoRA
    layers switch too.

    Args:
        peft_model: Changed in place.
        decoder_path: Name of the module that contains the list of blocks, such as `model`.
        mixin: `SwitchedModel` by default, or a subclass of it.

    Returns:
        The model's switch.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    switch = Switch()
    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    layers = [module for module in peft_model.modules() if isinstance(module, kinds)]
    for layer in layers:
        layer.__class__ = with_mixin(SwitchedLayer, type(layer))
        layer._switch = switch
    peft_model.__class__ = with_mixin(mixin or SwitchedModel, type(peft_model))
    peft_model._switch = switch
    decoder = peft_model.get_base_model().get_submodule(decoder_path)
    register_path_hooks(decoder, layers[0])
    return switch


def switch_of(model: "nn.Module") -> Switch:
    """Find the switch of a model, also inside a wrapper such as DDP; A405 where it has none."""
    for module in model.modules():
        if isinstance(module, (SwitchedModel, SwitchedLayer)):
            return module._switch
    raise SurgeryError(no_paths(model))


def _refuse_merged(model: "nn.Module") -> None:
    merged = _merged(model)
    if merged is not None:
        raise SurgeryError(diagnostic("A406", name=merged))


def _merged(model: Any) -> str | None:
    """Name of a layer whose LoRA is merged into the base; None where none is."""
    named = model.named_modules()
    return next((name for name, module in named if getattr(module, "merged", False)), None)
