"""The schema of a recipe after its overrides.

The same classes validate a recipe, complete it in an editor (`surgery recipes schema`) and document
it.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Union

from pydantic import AfterValidator, Field, PrivateAttr, model_validator
from pydantic_core import PydanticCustomError

from surgery.diagnostics.diagnostic import Diagnostic
from surgery.model.anatomy import PARTS
from surgery.operations.base import Operation, Strict, known_operations
from surgery.operations.block_selector import is_rest
from surgery.plugins import names_in
from surgery.recipe.environment import with_written
from surgery.recipe.source_map import Key, SourceMap
from surgery.recipe.training_schema import Names, Scalar, Stage
from surgery.storage.inputs import Input

if TYPE_CHECKING:
    AnyOperation = Operation
    AnyProjector = str
else:
    AnyProjector = Literal[tuple(names_in("surgery.vision.projectors"))]
    AnyOperation = Annotated[
        Union[tuple(known_operations().values())], Field(discriminator="op")  # noqa: UP007
    ]

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")
_NOT_TEXT: Final = ("integer", "number", "boolean", "array")
_WHOLE_ONLY: Final = ("required", "discriminator")
_MIN_WORDS: Final = 3


def _known_rule(name: str) -> str:
    """Refuse an unknown rule; a rule's file has its name, so that none has to be imported."""
    known = [file.replace("_", "-") for file in names_in("surgery.lint.rules")]
    if name not in known:
        fault, context = f"there is no lint rule `{name}`", {"name": name, "known": tuple(known)}
        raise PydanticCustomError("rule", "{fault}", {"fault": fault, **context})
    return name


def _check_reason(reason: str) -> str:
    """Refuse a reason that is too short to be one."""
    if len(reason.split()) < _MIN_WORDS:
        fault = f'"{reason}" is no reason: say in at least {_MIN_WORDS} words why it is all right'
        raise PydanticCustomError("reason", "{fault}", {"fault": fault})
    return reason


_Rule = Annotated[str, AfterValidator(_known_rule)]
_Reason = Annotated[str, AfterValidator(_check_reason)]


class Recipe(Strict):
    """What to change in a decoder, and what of it to train."""

    name: str = ""
    """The file's name without its extension; filled in when the recipe is read."""

    description: str = ""
    """One line for `surgery recipes list`."""

    model: str
    """A hub id, a folder, or a built-in model such as builtin/tiny-qwen2."""

    revision: str | None = None
    """Branch, tag or commit of a hub id."""

    vision: str | None = None
    """A vision tower to put before the decoder: a hub id, a folder, or a built-in one such as
    builtin/tiny-vit. `model` is then a language model."""

    projector: AnyProjector = "mlp_downsample"
    """The projector between `vision` and the decoder."""

    tiles: Annotated[int, Field(ge=1)] = 1
    """Largest number of tiles that an image is split into, each of the image size of `vision`, with
    a thumbnail in addition. 1: the complete image is resized to one. Only with `vision`."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of every random initialization."""

    knobs: dict[str, Scalar] = {}
    """Short names for overrides and sweeps, used as ${knobs.NAME}."""

    operations: dict[str, AnyOperation] = {}
    """The operations, each under a name of your own, applied top to bottom."""

    train: Names = ()
    """Names of operations, parts (decoder, blocks, embeddings, norm, head, vision, projector),
    globs over the base's tensor names, or OPERATION:glob. All else is frozen."""

    freeze: Names = ()
    """Names and globs, as in `train`, that take precedence over it."""

    stages: dict[str, Stage] = {}
    """Stages of training, in order; `surgery train` runs them."""

    allow: dict[_Rule, _Reason] = {}
    """Lint rules to allow: the rule's name, and a reason. Their findings become notes."""

    _sources: SourceMap = PrivateAttr(default_factory=SourceMap)
    _written: dict[Key, str] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _check_names(self) -> "Recipe":
        own = [("knobs", name) for name in self.knobs]
        own += [("operations", name) for name in self.operations]
        for key, name in own:
            fault = _fault_of_name(key, name)
            if fault:
                context = {"fault": fault, "key": f"{key}.{name}"}
                raise PydanticCustomError("name", "{fault}", context)
        return self

    @model_validator(mode="after")
    def _check_rest(self) -> "Recipe":
        rests = [name for name, operation in self.operations.items() if is_rest(operation.blocks)]
        if len(rests) > 1:
            fault = f"`rest` is in {' and '.join(rests)}; only one operation may take the rest"
            key = f"operations.{rests[-1]}.blocks"
            raise PydanticCustomError("rest", "{fault}", {"fault": fault, "key": key})
        return self

    def with_sources(self, sources: SourceMap) -> "Recipe":
        """Store where the keys were written; the recipe itself stays as it is."""
        self._sources = sources
        return self

    def with_written(self, written: dict[Key, str]) -> "Recipe":
        """Store the text of values that depend on the environment, to write it instead."""
        self._written = written
        return self

    def locate(self, diagnostics: Iterable[Diagnostic]) -> list[Diagnostic]:
        """Give each diagnostic with a `key` the location where that key was written."""
        return [self._sources.locate(diagnostic) for diagnostic in diagnostics]

    def inputs(self) -> Iterator[Input]:
        """The files and folders on this disk that it was read from or that it names."""
        yield from (Input(file, "the recipe") for file in self._sources.files)
        models = (name for name in (self.model, self.vision) if name)
        yield from (Input(Path(name).expanduser(), "the base") for name in models)
        for source in (s for stage in self.stages.values() for s in stage.sources.values()):
            file = Path(source.file).expanduser()
            yield Input(file, "the data")
            yield Input(Path(source.images or file.parent).expanduser(), "the pictures", open=True)

    def resolved(self) -> dict[str, Any]:
        """Plain data with every value spelled out, which reads back as the same recipe.

        Text that depends on the environment stays an interpolation. `allow` is left out where it is
        empty, so that plans of versions without lint stay the same.
        """
        excluded = set() if self.allow else {"allow"}
        content: dict[str, Any] = self.model_dump(
            mode="json", serialize_as_any=True, exclude=excluded
        )
        return with_written(content, self._written)


def _fault_of_name(key: str, name: str) -> str | None:
    """The error in the name of a knob or of an operation; None where it is valid."""
    kind = key.removesuffix("s")
    if not _NAME.fullmatch(name):
        return f"the {kind} `{name}` is not named with letters, digits, _ and - alone"
    if key == "knobs" and name in Recipe.model_fields:
        return f"the knob `{name}` has the name of a field of the recipe"
    if key == "operations" and name in PARTS:
        return f"the operation `{name}` has the name of a part of the model"
    return None


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema with which an editor completes a recipe file.

    It differs from the validated schema in two ways: a parent may supply any key, including an
    operation's `op`, and a value may be an interpolation such as `${knobs.rank}`.
    """
    schema: dict[str, Any] = _partial_schema(Recipe.model_json_schema())
    schema["properties"].pop("name")
    schema["properties"]["defaults"] = {
        "description": "Recipes to start from, later ones winning; `_self_` is this file.",
        "type": "array",
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _partial_schema(node: Any) -> Any:
    """The schema of a file that gets its other keys from a parent: no key is required."""
    if isinstance(node, list):
        return [_partial_schema(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    part = {key: _partial_schema(entry) for key, entry in node.items() if key not in _WHOLE_ONLY}
    if "oneOf" in part:  # of operations: keys without `op` fit several
        part["anyOf"] = part.pop("oneOf")
    if "properties" in part:
        fields = part["properties"]
        part["properties"] = {name: _or_interpolated(field) for name, field in fields.items()}
    for inside in ("additionalProperties", "items"):
        if isinstance(part.get(inside), dict):
            part[inside] = _or_interpolated(part[inside])
    return part


def _or_interpolated(field: dict[str, Any]) -> dict[str, Any]:
    is_free_text = not field.keys() & {"anyOf", "enum"} and field.get("type") not in _NOT_TEXT
    if is_free_text:
        return field
    annotations: dict[str, Any] = {
        key: field[key] for key in ("description", "default", "title") if key in field
    }
    value = {key: entry for key, entry in field.items() if key not in annotations}
    return {**annotations, "anyOf": [value, {"type": "string", "pattern": r"^\$\{.+\}$"}]}
