"""Initial values of added weights: the same on disk and in memory, on every machine.

The bits come from Philox, a counter-based generator whose raw stream NumPy guarantees between
versions (NEP 19), keyed by the recipe's seed and the module's name.
"""

import functools
import hashlib
import math
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from surgery.operations.edits import AddedTensor

STANDARD_DEVIATION: Final = 0.02
"""Standard deviation of a learner's A."""

_QUANTILES: Final = 2**16
_ENDS: Final = (".lora_A.weight", ".weight")


def kaiming_uniform(seed: int, module: str, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Initialize LoRA A, uniform in +-1/sqrt(inputs), as torch's `kaiming_uniform_(a=sqrt(5))`.

    Args:
        seed: Seed of the recipe.
        module: Full name of the adapted module, such as `model.layers.0.self_attn.q_proj`.
        shape: (rank, inputs).
    """
    raw = _raw(seed, module, math.prod(shape))
    unit = (raw >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
    bound = np.float32(1 / math.sqrt(shape[1]))
    start: NDArray[np.float32] = ((2 * unit - 1) * bound).reshape(shape)
    return start


def truncated_normal(seed: int, module: str, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Initialize a learner's A, normal with a standard deviation of 0.02.

    Each value is one of 65,536 equally likely quantiles, the middles of as many slices, so that
    only integers are drawn and no machine's logarithm makes a difference. That truncates the tails
    at 4.3 deviations; torch's `trunc_normal_(std=0.02)` truncates at +-2, which is 100 deviations.

    Args:
        seed: Seed of the recipe.
        module: Full name of the matrix, such as `model.layers.0.self_attn.learner.visual.q.A`.
        shape: (rank, inputs).
    """
    count = math.prod(shape)
    drawn = _raw(seed, module, -(-count // 4)).astype("<u8").view("<u2")[:count]
    start: NDArray[np.float32] = _quantiles()[drawn].reshape(shape)
    return start


def initial_value(seed: int, tensor: AddedTensor) -> NDArray[np.float32]:
    """Return the initial value of a tensor that doesn't depend on the base's weights.

    Args:
        seed: Seed of the recipe.
        tensor: Tensor whose `start` is `zeros`, `kaiming` or `normal`.
    """
    if tensor.start == "zeros":
        return np.zeros(tensor.shape, np.float32)
    rows, inputs = tensor.shape
    module = next(tensor.name.removesuffix(end) for end in _ENDS if tensor.name.endswith(end))
    make = {"kaiming": kaiming_uniform, "normal": truncated_normal}[tensor.start]
    return make(seed, module, (rows, inputs))


def _raw(seed: int, module: str, count: int) -> NDArray[np.uint64]:
    key = int.from_bytes(hashlib.sha256(f"{seed}\n{module}".encode()).digest()[:16], "little")
    raw: NDArray[np.uint64] = np.random.Philox(key=key).random_raw(count)
    return raw


@functools.cache
def _quantiles() -> NDArray[np.float32]:
    normal = NormalDist(0, STANDARD_DEVIATION)
    values = [normal.inv_cdf((i + 0.5) / _QUANTILES) for i in range(_QUANTILES)]
    return np.array(values, np.float32)
