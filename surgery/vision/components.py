"""The components that a recipe assembles a model of, and whether they fit together."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeVar

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.model.anatomy import Anatomy
from surgery.model.reader import read_anatomy
from surgery.model.source import ModelFiles, builtin_towers, find_model
from surgery.recipe.schema import Recipe
from surgery.vision.projector import Projector, known_projectors
from surgery.vision.vision_tower import VisionTower, read_vision_tower

LANGUAGE_PREFIX: Final = "model.language_model."
"""Prefix of the decoder's tensors, except its head, in the vision-language classes."""

VISION_PREFIX: Final = "model.vision_tower."
HEAD: Final = "lm_head.weight"

_AFTER_HEAD: Final = (
    "logit_scale",
    "logits_scaling",
    "lm_head_multiplier",
    "final_logit_softcapping",
)
"""Config keys of decoders that scale or cap their logits after the head, which Llava doesn't."""

_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Parts:
    """The components of an assembled model.

    Args:
        text: Files of the decoder.
        vision: Files of the vision tower.
        decoder: Anatomy of the decoder.
        tower: Sizes and tensors of the vision tower.
        projector: The projector from the tower to the decoder.
    """

    text: ModelFiles
    vision: ModelFiles
    decoder: Anatomy
    tower: VisionTower
    projector: Projector

    def new_names(self) -> dict[str, str]:
        """Map each tensor name of the decoder to its name in the assembled model."""
        root = f"{self.decoder.blocks_path.partition('.')[0]}."
        names = (tensor.name for tensor in self.decoder.tensors())
        return {
            n: LANGUAGE_PREFIX + n.removeprefix(root) if n.startswith(root) else HEAD for n in names
        }


def find_parts(recipe: Recipe, *, weights: bool) -> Parts:
    """Find and read the decoder and the vision tower of a recipe.

    Args:
        recipe: A recipe with `vision`.
        weights: Whether both must have weights.

    Raises:
        SurgeryError: M101 to M110 for the decoder, M121 to M123 for the vision tower, M102 for one
            without weights, M125 for a decoder that can't be the language model of Llava.
    """
    assert recipe.vision is not None
    text = find_model(recipe.model, revision=recipe.revision, weights=weights)
    try:
        vision = find_model(recipe.vision, weights=weights)
    except SurgeryError as error:
        raise SurgeryError(_no_vision(recipe.vision, error)) from error
    if weights:
        text.checkpoint()
        _blaming_vision(vision.checkpoint)
    decoder = read_anatomy(text)
    refuse_unfit(decoder, text.config())
    tower = _blaming_vision(partial(read_vision_tower, vision))
    return Parts(text, vision, decoder, tower, known_projectors()[recipe.projector])


def refuse_unfit(decoder: Anatomy, config: Mapping[str, Any]) -> None:
    """Refuse a decoder that would compute something else inside Llava.

    Args:
        decoder: Anatomy of the decoder.
        config: Content of its config.json.

    Raises:
        SurgeryError: M125.
    """
    source = decoder.source
    if decoder.names_in("vision"):
        raise SurgeryError(_unfit(source, "it has a vision tower of its own"))
    if decoder.quantization:
        why = f"its weights are quantized ({decoder.quantization})"
        raise SurgeryError(_unfit(source, why))
    changed = next((name for name in _AFTER_HEAD if config.get(name) not in (None, 1, 1.0)), None)
    if changed:
        why = f"its logits are changed after the head (`{changed}`), and Llava's are not"
        raise SurgeryError(_unfit(source, why))


def refuse_other_decoder(parts: Parts, read: Callable[[], Anatomy]) -> None:
    """Refuse a decoder that Llava can't be built around, or whose tensors would differ inside it.

    Args:
        parts: The components of the model.
        read: Function that returns the anatomy of the assembled model.

    Raises:
        SurgeryError: M125.
    """
    try:
        assembled = read()
    except SurgeryError as error:
        why = f"Llava can't be built around it: {error.diagnostics[0].why}"
        raise SurgeryError(_unfit(parts.decoder.source, why)) from error
    sizes, names = parts.decoder.sizes, parts.new_names()
    wanted = {(names[name], size) for name, size in sizes.items()}
    separate = {*assembled.names_in("vision"), *assembled.names_in("projector")}
    found = {item for item in assembled.sizes.items() if item[0] not in separate}
    if wanted != found or len(wanted) != len(sizes):
        name = min(wanted ^ found)[0] if wanted != found else HEAD
        why = f"as the language model of Llava it would have other tensors, `{name}` among them"
        raise SurgeryError(_unfit(parts.decoder.source, why))


def _blaming_vision(make: Callable[[], _Made]) -> _Made:
    """Report an error of a model as an error of the recipe's key `vision`."""
    try:
        return make()
    except SurgeryError as error:
        raise SurgeryError([replace(d, key="vision") for d in error.diagnostics]) from error


def _no_vision(source: str, error: SurgeryError) -> Diagnostic:
    reason = error.diagnostics[0]
    near = f"{reason.fix} " if reason.fix.startswith("did you mean") else ""
    return diagnostic(
        "M121",
        source=source,
        what=reason.what,
        why=reason.why,
        near=near,
        builtin_towers=list(builtin_towers()),
        key="vision",
    )


def _unfit(source: str, why: str) -> Diagnostic:
    return diagnostic("M125", source=source, why=why, key="model")
