"""Which path a model is on: the key of its context, and the property by which its layers answer.

The path lives in a `ContextVar`, so that it nests, ends with its block even when that raises, and
is each thread's own. PEFT's wrappers ask `disable_adapters` on every call; ours answer by the path.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.layers.class_mixin import reduce_mixin

if TYPE_CHECKING:
    from torch import nn

PathName = Literal["text", "multimodal"]
TEXT: Final = "text"
MULTIMODAL: Final = "multimodal"


_BASE_MODULES: Final = ("base_layer", "original_module")
"""What PEFT's LoRA layers and its wrappers of whole modules call the base's own module."""


class Switch:
    """What the wrappers of one model share: the key under which the context holds its path."""

    def __init__(self) -> None:
        self.has_text_path = True
        """False where the base trains in place beside added parts."""
        self.fixed: PathName | None = None
        """The only path, where `fix_path` fixed it."""
        self.call_values: dict[str, Any] = {}
        """What a traced call reads instead of a context."""

    @property
    def path(self) -> PathName:
        """The path in this context."""
        return self.fixed or _paths.get().get(self, MULTIMODAL)


_paths: ContextVar[Mapping[Switch, PathName]] = ContextVar(
    "surgery_paths", default=MappingProxyType({})
)


class SwitchedLayer:
    """Mixed into a PEFT layer or wrapper: it is disabled along the text path."""

    _switch: Switch
    _disable_adapters: bool

    @property
    def disable_adapters(self) -> bool:
        """Whether only the base takes part: along the text path, or where PEFT was told so."""
        # not super().disable_adapters: torch.compile takes that property for a true value
        return self._switch.path == TEXT or bool(self._disable_adapters)

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
        return reduce_mixin(SwitchedLayer, self)


@contextmanager
def use_path(switch: Switch, path: PathName) -> Iterator[None]:
    """Set the path of one switch for a while; A417 where another is fixed."""
    if switch.fixed not in (None, path):
        raise SurgeryError(_is_fixed(str(switch.fixed), path))
    token = _paths.set(MappingProxyType({**_paths.get(), switch: path}))
    try:
        yield
    finally:
        _paths.reset(token)


def _is_fixed(fixed: str, path: str) -> Diagnostic:
    return Diagnostic(
        code="A417",
        what=f"the {path} path was asked of a model that is fixed to the {fixed} path",
        why="`fix_path` did so, and what was compiled since knows no other path",
        fix="call `fix_path(model, None)` to give it both paths again",
    )


def path_of(layer: SwitchedLayer) -> PathName:
    """The path that a layer is on, by its context or because PEFT was told so."""
    return TEXT if layer.disable_adapters else MULTIMODAL


def no_paths(model: "nn.Module") -> Diagnostic:
    """What is wrong with asking a model for a path that it doesn't have."""
    return Diagnostic(
        code="A405",
        what=f"this {type(model).__name__} has no text and multimodal path",
        why="paths belong to a model from `apply_plan` or `load_adapter`; a recipe that trains the "
        "base in place has only the stored original as its text path",
        fix="open the adapter with `load_adapter`, or load the original base for text",
    )
