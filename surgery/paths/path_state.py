"""The path that a model is on: a key of the context, and a property of each layer that reads it.

The path is in a `ContextVar`, so that it nests, is restored even when the body raises, and is each
thread's own. PEFT's wrappers read `disable_adapters` on every call; here it depends on the path.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import Diagnostic, SurgeryError
from surgery.layers.class_mixin import reduce_mixin

if TYPE_CHECKING:
    from torch import nn

PathName = Literal["text", "multimodal"]
TEXT: Final = "text"
MULTIMODAL: Final = "multimodal"


_BASE_MODULES: Final = ("base_layer", "original_module")
"""Attributes under which PEFT's LoRA layers and module wrappers keep the base's module."""


class Switch:
    """State shared by the wrappers of one model: the key under which the context has its path."""

    def __init__(self) -> None:
        self.has_text_path = True
        """False where the base trains in place together with added parts."""
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
    """Mixin of a PEFT layer or wrapper that disables it on the text path."""

    _switch: Switch
    _disable_adapters: bool

    @property
    def disable_adapters(self) -> bool:
        """Whether only the base computes: on the text path, or where PEFT disabled the adapters."""
        # not super().disable_adapters: torch.compile takes that property for True
        return self._switch.path == TEXT or bool(self._disable_adapters)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the base's module directly on the text path, and PEFT's forward otherwise."""
        if self._switch.path == TEXT:
            modules = vars(self)["_modules"]  # faster than Module.__getattr__
            for name in _BASE_MODULES:
                if name in modules:
                    kwargs.pop("adapter_names", None)
                    return modules[name](*args, **kwargs)
        return super().forward(*args, **kwargs)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return reduce_mixin(SwitchedLayer, self)


@contextmanager
def use_path(switch: Switch, path: PathName) -> Iterator[None]:
    """Set the path of one switch in a context; A417 where another is fixed."""
    if switch.fixed not in (None, path):
        raise SurgeryError(diagnostic("A417", path=path, fixed=str(switch.fixed)))
    token = _paths.set(MappingProxyType({**_paths.get(), switch: path}))
    try:
        yield
    finally:
        _paths.reset(token)


def path_of(layer: SwitchedLayer) -> PathName:
    """The path of a layer, by its context or because PEFT disabled its adapters."""
    return TEXT if layer.disable_adapters else MULTIMODAL


def no_paths(model: "nn.Module") -> Diagnostic:
    """The error of a model that doesn't have the requested path."""
    return diagnostic("A405", class_name=type(model).__name__)
