"""The processes that train together, as torchrun or accelerate started them."""

import os
from typing import Any


def processes() -> int:
    """How many there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def this_process() -> Any:
    """Accelerate's state of this process; on CPU the processes talk through gloo."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available())
