"""A model with parts for image tokens: each call has a mask; saving and merging are guarded."""

import inspect
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.layers.class_mixin import reduce_mixin
from surgery.layers.image_tokens import CALLER_MASK, ImageMask, check_mask
from surgery.paths.path_state import PathName
from surgery.paths.switching import SwitchedModel


class RoutedModel(SwitchedModel):
    """Mixin of a PEFT model: `forward` and `generate` take a mask of the image tokens."""

    def forward(self, *args: Any, paths: Sequence[PathName] | None = None, **kwargs: Any) -> Any:
        """Run the model.

        Args:
            args: Positional arguments of the model.
            paths: As for `SwitchedModel.forward`.
            kwargs: Arguments of the model, and `image_mask`, (rows, tokens), bool, True at image
                tokens; with a cache, of the tokens of this call or of all tokens so far.
                `token_type_ids` of 1 mean the same.

        Raises:
            SurgeryError: A410, if nothing tells which tokens are image tokens; A411, for a mask of
                another shape.
        """
        if paths is not None:
            return super().forward(*args, paths=paths, **kwargs)
        mask = self._take_mask(kwargs)
        if mask is None:
            return super().forward(*args, **kwargs)
        with self._with_mask(mask, args, kwargs, is_prompt=False):
            return super().forward(*args, **kwargs)

    def generate(self, *args: Any, paths: Sequence[PathName] | None = None, **kwargs: Any) -> Any:
        """Generate; arguments as for `forward`, with the mask of the prompt's tokens.

        Returns:
            As `SwitchedModel.generate`.
        """
        if paths is not None:
            return super().generate(*args, paths=paths, **kwargs)
        with self._with_mask(self._take_mask(kwargs), args, kwargs, is_prompt=True):
            return super().generate(*args, **kwargs)

    def merge_and_unload(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse before anything is merged; `unload()` returns the base.

        Raises:
            SurgeryError: A412.
        """
        raise SurgeryError(cannot_merge())

    def _take_mask(self, kwargs: dict[str, Any]) -> torch.Tensor | None:
        """Remove from the arguments what the base doesn't accept, and return the mask."""
        mask, types = kwargs.pop("image_mask", None), kwargs.get("token_type_ids")
        base: Any = self.get_base_model()  # type: ignore[attr-defined]
        if types is not None and "token_type_ids" not in inspect.signature(base.forward).parameters:
            del kwargs["token_type_ids"]
        if mask is None and types is not None:
            mask = types == 1
        return None if mask is None else mask.bool()

    def _with_mask(
        self, mask: torch.Tensor | None, args: Any, kwargs: dict[str, Any], *, is_prompt: bool
    ) -> AbstractContextManager[None]:
        if mask is None or self._switch.path == "text":
            return nullcontext()
        names = ("input_ids", "inputs", "inputs_embeds")
        tokens = next((kwargs[n] for n in names if kwargs.get(n) is not None), *args[:1] or (None,))
        check_mask(mask, None if tokens is None else tokens.shape[:2])
        return CALLER_MASK.scope(self._switch, ImageMask(mask, is_prompt))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return reduce_mixin(RoutedModel, self)


def cannot_merge() -> Diagnostic:
    """The error of merging parts for image tokens."""
    return diagnostic("A412.parts")
