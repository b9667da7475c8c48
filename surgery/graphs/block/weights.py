"""Weights for the parameters of one block: none, random ones, or those on disk.

Only that block is ever in memory. Without values it has addresses and no pages behind them.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from safetensors import safe_open
from torch import nn

from surgery.diagnostics.diagnostic import SurgeryError
from surgery.graphs.block.expert_nodes import stored_name
from surgery.graphs.block.trace_errors import no_weights
from surgery.operations.edits import PEFT_PREFIX
from surgery.storage.file_names import ADAPTER_WEIGHTS
from surgery.storage.safetensors.dtypes import TORCH_NAMES

if TYPE_CHECKING:
    from surgery.model.names.disk_names import DiskNames

Weights = Literal["none", "random", "real"]
_SPREAD: Final = 0.02


@dataclass(frozen=True)
class Disk:
    """Where real weights are.

    Args:
        stored: the base's checkpoint.
        adapter: an adapter folder, whose copies and experts win over the base; None for the base
            and the text path.
    """

    stored: "DiskNames"
    adapter: Path | None = None


def settle(owner: Any, modules: Iterable[nn.Module]) -> None:
    """Bring modules from the meta device to the CPU: right rotary tables, parameters zero.

    A parameter is one zero under every index, so that it takes no memory.

    Args:
        owner: the transformers model that the modules are of, which knows how they begin.
        modules: changed in place, each for itself.
    """
    for module in modules:
        buffers = dict(module.named_buffers(recurse=False))
        for name, buffer in buffers.items():
            module._buffers[name] = torch.zeros_like(buffer, device="cpu")
        if buffers:  # while its parameters take no memory
            owner._init_weights(module)
        for name, parameter in module.named_parameters(recurse=False):
            zeros = torch.zeros((), dtype=parameter.dtype).expand(parameter.shape)
            setattr(module, name, nn.Parameter(zeros, requires_grad=False))


def fill(
    owner: Any, block: nn.Module, weights: Weights, module_path: str, disk: Disk | None
) -> None:
    """Bring a block from the meta device to the CPU, with these weights.

    Args:
        owner: as for `settle`.
        block: changed in place.
        weights: `none`; `random`, the model's own start with noise on norms and biases, always the
            same; or `real`.
        module_path: the block's full module name in the base.
        disk: where real weights are.

    Raises:
        SurgeryError: X112, where a real one isn't on disk.
    """
    for module in block.modules():
        if _is_table(module):
            settle(owner, [module])
        else:
            _allocate(module)
    if weights == "random":
        _begin(owner, block)
    if weights == "real":
        assert disk is not None
        _load(block, module_path, disk)


def _allocate(module: nn.Module) -> None:
    """Give a module's own tensors addresses; the system gives them pages when they are written."""
    for name, parameter in module.named_parameters(recurse=False):
        empty = torch.empty(parameter.shape, dtype=parameter.dtype)
        setattr(module, name, nn.Parameter(empty, requires_grad=False))
    for name, buffer in module.named_buffers(recurse=False):
        module._buffers[name] = torch.zeros_like(buffer, device="cpu")


def _is_table(module: nn.Module) -> bool:
    """Whether a module holds buffers alone, as one of rotary embeddings does."""
    own = any(True for _ in module.buffers(recurse=False))
    return own and not any(True for _ in module.parameters(recurse=False))


@torch.no_grad()
def _begin(owner: Any, block: nn.Module) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for parameter in block.parameters():
            parameter.normal_(std=_SPREAD)
        for module in block.modules():
            owner._init_weights(module)
        for parameter in block.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn(parameter.shape), alpha=_SPREAD)


@torch.no_grad()
def _load(block: nn.Module, module_path: str, disk: Disk) -> None:
    changed = dict(_of_adapter(disk.adapter, module_path)) if disk.adapter else {}
    for name, tensor in block.state_dict().items():
        full = f"{module_path}.{stored_name(name)}"
        tensor.copy_(changed[full] if full in changed else read_base(full, disk.stored))


def read_base(name: str, stored: "DiskNames") -> torch.Tensor:
    """Return a tensor of the base, by its full name in memory; an expert's is its matrix's.

    Raises:
        SurgeryError: X112 where the checkpoint doesn't hold it.
    """
    origin = stored.origin(name) or stored.origin(name.replace(".expert.", "."))
    if origin is None:
        raise SurgeryError(no_weights(name, "its checkpoint doesn't hold it"))
    source = stored.source(origin)
    if callable(source):
        return _of_bytes(source(), origin.dtype, origin.shape)
    with safe_open(source.file, "pt") as file:
        tensor: torch.Tensor = file.get_tensor(source.name)
    return tensor


def _of_bytes(content: bytes, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    torch_dtype = getattr(torch, TORCH_NAMES[dtype])
    return torch.frombuffer(bytearray(content), dtype=torch_dtype).view(shape)


def _of_adapter(folder: Path, module_path: str) -> Iterator[tuple[str, torch.Tensor]]:
    with safe_open(folder / ADAPTER_WEIGHTS, "pt") as file:
        for saved in file.keys():  # noqa: SIM118 - it is no dict
            name = saved.removeprefix(PEFT_PREFIX)
            if name.startswith(f"{module_path}."):
                yield name, file.get_tensor(saved)


def read_pairs(folder: Path, module_path: str) -> Mapping[str, torch.Tensor]:
    """Return what an adapter has for the block at `place`, by name without `PEFT_PREFIX`."""
    return dict(_of_adapter(folder, module_path))
