"""How far two results of one graph agree."""

from typing import Any, Final

import numpy as np
from pydantic import BaseModel, ConfigDict

from surgery.npu.qualcomm.arrays import Arrays

ENOUGH: Final = 0.9999
"""The cosine from which on two results count as the same."""
NEAR: Final = 0.99
"""The cosine from which on they are near, where no error is a large part of the range."""
LEAST: Final = 2.0**-14
"""The least normal number of fp16. The NPU gives 0 for what is below, so that it is no error."""
_NEARLY_ENOUGH: Final = 0.999
_SMALL: Final = 0.02
_LARGE: Final = 0.25
"""Parts of the range. On 15 real files in fp16 the greatest error was 0.02 to 0.2 of it, where
outputs are probabilities that jump, and below 0.01 elsewhere."""


class Agreement(BaseModel):
    """How far one output agrees with what it should be.

    Args:
        cosine: of the two as vectors; 0 where shapes differ or one has values that are not finite.
        error: greatest absolute difference; infinite in those cases.
        range: from the least to the greatest number that should be, 0 among them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    cosine: float
    error: float
    range: float

    @property
    def relative(self) -> float:
        """The greatest difference as a part of the range; infinite where that is nothing."""
        if not self.error:
            return 0.0
        return self.error / self.range if self.range else float("inf")

    @property
    def is_enough(self) -> bool:
        """Whether they count as the same: by direction and by error, or below what fp16 has."""
        if self.error <= LEAST or (self.cosine >= ENOUGH and self.relative <= _LARGE):
            return True
        return self.cosine >= _NEARLY_ENOUGH and self.relative <= _SMALL

    @property
    def is_near(self) -> bool:
        """Whether they are the same but for rounding, or so near that a look is needed."""
        near = self.cosine >= NEAR and self.relative <= _LARGE
        return self.is_enough or near or self.cosine >= ENOUGH

    @property
    def is_inconclusive(self) -> bool:
        """Whether all that should be is below what fp16 has."""
        return self.range <= LEAST


_DISAGREEMENT: Final = Agreement(cosine=0.0, error=float("inf"), range=float("inf"))


def agreement(found: Arrays, expected: Arrays) -> dict[str, Agreement]:
    """Compare what was found with what was wanted, output by output.

    Args:
        found: may lack outputs; those agree in nothing.
        expected: the reference.
    """
    return {
        name: _compare(found[name], array) if name in found else _DISAGREEMENT
        for name, array in expected.items()
    }


def _compare(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> Agreement:
    if found.shape != expected.shape:
        return _DISAGREEMENT
    a, b = (array.astype(np.float64).ravel() for array in (found, expected))
    differ = a != b
    if not np.isfinite(a[differ]).all() or not np.isfinite(b[differ]).all():
        return _DISAGREEMENT
    finite = np.isfinite(b)
    a, b = a[finite], b[finite]
    return Agreement(
        cosine=_cosine(a, b),
        error=float(np.abs(a - b).max(initial=0.0)),
        range=float(b.max(initial=0.0) - b.min(initial=0.0)),
    )


def _cosine(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    if np.array_equal(a, b):
        return 1.0
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else 0.0
