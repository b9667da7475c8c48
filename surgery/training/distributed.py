"""The processes of a training, and sharding of a model by torch's `fully_shard`.

accelerate shards only on an accelerator (`AcceleratorState`, 1.15). On CPU the same launch command
gets the same sharding from here: each block is a unit, the rest another.
"""

import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from surgery.plan.planner import Plan


def world_size() -> int:
    """Number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def this_process() -> Any:
    """Accelerate's state of this process; on CPU the backend is gloo."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())


def wants_sharding() -> bool:
    """Whether `accelerate launch --use_fsdp` started this process, and accelerate won't shard."""
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    return asked and world_size() > 1 and not torch.accelerator.is_available()


def shard(plan: Plan, model: Any) -> None:
    """Shard a model over all processes.

    Args:
        plan: The applied plan.
        model: Changed in place; of one dtype.
    """
    from torch.distributed.fsdp import fully_shard

    for block in _blocks(plan, model):
        fully_shard(block)
    fully_shard(model)
    model._is_fsdp_managed_module = True  # as transformers marks one that it sharded itself


def is_sharded(model: Any) -> bool:
    """Whether `shard` sharded the model."""
    return getattr(model, "_is_fsdp_managed_module", False) is True


def full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor gathered from all processes, each of which must call this."""
    from torch.distributed.tensor import DTensor

    found: torch.Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return found.detach()


def distribute_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A full tensor, distributed over the processes as another one is."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements)


def optimizer_state(model: Any, optimizer: Any) -> dict[str, Any]:
    """The optimizer's state gathered from all processes, by the names of parameters."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_optimizer_state_dict(model, optimizer, options=options)


def load_optimizer_state(model: Any, optimizer: Any, state: dict[str, Any]) -> None:
    """Distribute the state of `optimizer_state` over the processes."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True)
    set_optimizer_state_dict(model, optimizer, state, options=options)


def _blocks(plan: Plan, model: Any) -> Iterator[nn.Module]:
    """The blocks of the decoder; of a copied one, the original and the copy separately."""
    base = model if plan.is_plain else model.get_base_model()
    for block in base.get_submodule(plan.result.blocks_path):
        copies = getattr(block, "modules_to_save", None)
        yield from (block.original_module, *copies.values()) if copies else (block,)
