"""Values that belong to one call of one model, while it runs.

They are in a `ContextVar`, so that threads and tasks don't share them. `torch.compile` can't read
one: where a model's path is fixed, a traced call reads an attribute of the switch instead, which
dynamo guards. Inside one graph that attribute is resolved while tracing, so that compiled calls
don't share it either.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")


class CallState(Generic[T]):
    """One value per model, None outside of its calls.

    Args:
        name: Name of the ContextVar, and key of the value on a switch.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._values: ContextVar[Mapping[Any, T]] = ContextVar(
            f"surgery_{name}", default=MappingProxyType({})
        )

    def read(self, switch: Any) -> T | None:
        """The value of a model in this call."""
        if switch.fixed is None or not torch.compiler.is_compiling():
            values = self._values.get()
            if switch in values:
                return values[switch]
        value: T | None = switch.call_values.get(self.name)
        return value

    def write(self, switch: Any, value: T | None) -> None:
        """Set the value of a model for this call; None removes it."""
        if switch.fixed is not None:
            switch.call_values[self.name] = value
        if switch.fixed is None or not torch.compiler.is_compiling():
            others = {key: other for key, other in self._values.get().items() if key is not switch}
            mine = {} if value is None else {switch: value}
            self._values.set(MappingProxyType({**others, **mine}))

    @contextmanager
    def scope(self, switch: Any, value: T | None) -> Iterator[None]:
        """Set the value in a context; not traceable."""
        before = self.read(switch)
        self.write(switch, value)
        try:
            yield
        finally:
            self.write(switch, before)
