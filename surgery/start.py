"""How a low-rank pair starts: the same numbers from disk and in memory, on every machine.

The bits come from Philox, a counter-based generator whose raw stream NumPy keeps stable between
versions (NEP 19), keyed by the recipe's seed and the module's name.
"""

import hashlib
import math

import numpy as np
from numpy.typing import NDArray


def kaiming_uniform(seed: int, module: str, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return the start of A, uniform in +-1/sqrt(inputs), as torch's `kaiming_uniform_(a=sqrt(5))`.

    Args:
        seed: the recipe's.
        module: full name of the adapted module, such as `model.layers.0.self_attn.q_proj`.
        shape: (rank, inputs).
    """
    key = int.from_bytes(hashlib.sha256(f"{seed}\n{module}".encode()).digest()[:16], "little")
    raw = np.random.Philox(key=key).random_raw(math.prod(shape))
    unit = (raw >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
    bound = np.float32(1 / math.sqrt(shape[1]))
    start: NDArray[np.float32] = ((2 * unit - 1) * bound).reshape(shape)
    return start
