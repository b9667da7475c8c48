"""Values that belong to one call of one model, while it runs.

They live in a `ContextVar`, so that threads and tasks don't see each other's. `torch.compile` can't
read one: where a model's path is fixed, what it traces reads an attribute of the switch instead,
and dynamo guards on it. Inside one graph that attribute is resolved while tracing, so that compiled
calls don't meet in it either.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import torch

T = TypeVar("T")


class CallState(Generic[T]):
    """A value for each model, None outside of its calls.

    Args:
        name: of the ContextVar, and of the value on a switch.
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
        """Set the value of a model for this call; None takes it away."""
        if switch.fixed is not None:
            switch.call_values[self.name] = value
        if switch.fixed is None or not torch.compiler.is_compiling():
            others = {key: other for key, other in self._values.get().items() if key is not switch}
            mine = {} if value is None else {switch: value}
            self._values.set(MappingProxyType({**others, **mine}))

    @contextmanager
    def scope(self, switch: Any, value: T | None) -> Iterator[None]:
        """Set the value for a while; not to be traced."""
        before = self.read(switch)
        self.write(switch, value)
        try:
            yield
        finally:
            self.write(switch, before)
