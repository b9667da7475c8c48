"""transformers' own conversion of a checkpoint into the names and layouts of one model.

This is the only module that uses it. Part of it is undocumented, so an installed version that lacks
it gets a diagnostic. Source: transformers 5.17 to 5.23, `conversion_mapping.py` and
`core_model_loading.py`, whose `convert_and_load_state_dict_in_model` this follows step by step.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from surgery.diagnostics.catalog import diagnostic
from surgery.diagnostics.diagnostic import SurgeryError
from surgery.storage.safetensors.dtypes import HEADER_NAMES, TORCH_NAMES
from surgery.storage.safetensors.header import StoredTensor

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class ConvertedTensor(BaseModel):
    """A tensor in memory that a converter of transformers makes.

    Args:
        layer: Name with which transformers calls the converter, that of its first output.
        dtype: A safetensors dtype.
        shape: Dimensions, as in torch.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    layer: str
    dtype: str
    shape: tuple[int, ...]


class NameMap(BaseModel):
    """From names on disk to names in memory.

    Args:
        memory: From name on disk to name in memory, in the order in which transformers takes them;
            where a converter makes several of one, the first of them. Ignored tensors are left out.
        patterns: From name on disk to the pattern under which a converter takes it.
        made: From name in memory to the converted tensor.
        failed: From name in memory to the error of a converter on what is on disk.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    memory: dict[str, str]
    patterns: dict[str, str] = {}
    made: dict[str, ConvertedTensor] = {}
    failed: dict[str, str] = {}

    @cached_property
    def disk(self) -> dict[str, list[str]]:
        """From name in memory to the names on disk that it is made from."""
        found: dict[str, list[str]] = {}
        for name, memory in self.memory.items():
            found.setdefault(memory, []).append(name)
        return found


class Conversion:
    """transformers' conversion of tensors on disk into those of one model.

    Args:
        model: Model on any device, such as the meta device.

    Raises:
        SurgeryError: M110, where this version of transformers has no such conversion.
    """

    def __init__(self, model: "PreTrainedModel") -> None:
        with _needs_conversion():
            from transformers import conversion_mapping
            from transformers import core_model_loading as loading

            rules = conversion_mapping.get_model_conversion_mapping(model)
            self._renamings = [rule for rule in rules if isinstance(rule, loading.WeightRenaming)]
            self._converters = [r for r in rules if isinstance(r, loading.WeightConverter)]
            self._rename = loading.rename_source_key
            self._order = loading.dot_natural_key
        self._model = model
        self._memory = model.state_dict()

    def map_names(self, tensors: Mapping[str, StoredTensor]) -> NameMap:
        """Map names on disk to names in memory; the converters run on the meta device.

        Args:
            tensors: Tensors of the checkpoint by name on disk.
        """
        memory: dict[str, str] = {}
        patterns: dict[str, str] = {}
        with _needs_conversion():
            for name in sorted(tensors, key=self._order):
                renamed, pattern = self._renamed(name)
                if renamed in self._memory:
                    memory[name] = renamed
                    patterns |= {} if pattern is None else {name: pattern}
        return self._with_made(NameMap(memory=memory, patterns=patterns), tensors)

    def make(
        self, layer: str, parts: Iterable[tuple[str, str, "torch.Tensor"]]
    ) -> dict[str, "torch.Tensor"]:
        """Run a converter and return its tensors by name in memory.

        Args:
            layer: As in `ConvertedTensor`.
            parts: Name on disk, pattern and tensor of each source, in transformers' order.
        """
        converter = None
        for name, pattern, tensor in parts:
            converter = converter or self._converter(pattern)
            converter.add_tensor(layer, name, pattern, tensor)
        assert converter is not None
        made = converter.convert(layer, model=self._model, config=self._model.config)
        return {name: t[0] if isinstance(t, list) else t for name, t in made.items()}

    def _renamed(self, name: str) -> tuple[str, str | None]:
        prefix = self._model.base_model_prefix
        renamed = self._rename(name, self._renamings, self._converters, prefix, self._memory)
        if renamed[0] not in self._memory and name in self._memory:
            renamed = self._rename(name, [], [], prefix, self._memory)
        found: tuple[str, str | None] = renamed
        return found

    def _converter(self, pattern: str) -> Any:
        # the last one of that pattern, as transformers' own dict of them has it
        return deepcopy([c for c in self._converters if pattern in c.source_patterns][-1])

    def _with_made(self, names: NameMap, tensors: Mapping[str, StoredTensor]) -> NameMap:
        made: dict[str, ConvertedTensor] = {}
        failed: dict[str, str] = {}
        for layer, parts in names.disk.items():
            if parts[0] not in names.patterns:
                continue
            sources = ((n, names.patterns.get(n, n), _on_meta(tensors[n])) for n in parts)
            try:
                found = self.make(layer, sources)
            except Exception as error:  # converters check nothing, so torch raises
                failed[layer] = f"{type(error).__name__}: {error}"
                continue
            made |= {n: _made(layer, tensor) for n, tensor in found.items() if n in self._memory}
        return names.model_copy(update={"made": made, "failed": failed})


def _on_meta(tensor: StoredTensor) -> "torch.Tensor":
    import torch

    dtype = getattr(torch, TORCH_NAMES[tensor.dtype])
    return torch.empty(tensor.shape, dtype=dtype, device="meta")


def _made(layer: str, tensor: "torch.Tensor") -> ConvertedTensor:
    dtype = HEADER_NAMES[str(tensor.dtype).removeprefix("torch.")]
    return ConvertedTensor(layer=layer, dtype=dtype, shape=tuple(tensor.shape))


@contextmanager
def _needs_conversion() -> Iterator[None]:
    try:
        yield
    except (ImportError, AttributeError, TypeError) as error:
        raise SurgeryError(
            diagnostic("M110", version=version("transformers"), error=error, key="model")
        ) from error
