"""How far two results of one graph agree."""

from typing import Any, Final

import numpy as np
from pydantic import BaseModel, ConfigDict

from surgery.snapdragon.arrays import Arrays

ENOUGH: Final = 0.9999
"""The cosine from which on two results count as the same."""


class Agreement(BaseModel):
    """How far one output agrees with what it should be.

    Args:
        cosine: of the two as vectors; 0 where shapes differ or one has numbers that are not finite.
        error: greatest absolute difference; infinite in those cases.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    cosine: float
    error: float

    @property
    def is_enough(self) -> bool:
        """Whether they count as the same."""
        return self.cosine >= ENOUGH


_NONE: Final = Agreement(cosine=0.0, error=float("inf"))


def agreement(found: Arrays, wanted: Arrays) -> dict[str, Agreement]:
    """Compare what was found with what was wanted, output by output.

    Args:
        found: may lack outputs; those agree in nothing.
        wanted: the reference.
    """
    return {
        name: _compare(found[name], array) if name in found else _NONE
        for name, array in wanted.items()
    }


def _compare(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> Agreement:
    if found.shape != wanted.shape:
        return _NONE
    a, b = (array.astype(np.float64).ravel() for array in (found, wanted))
    differ = a != b
    if not np.isfinite(a[differ]).all() or not np.isfinite(b[differ]).all():
        return _NONE
    finite = np.isfinite(b)
    a, b = a[finite], b[finite]
    return Agreement(cosine=_cosine(a, b), error=float(np.abs(a - b).max(initial=0.0)))


def _cosine(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    if np.array_equal(a, b):
        return 1.0
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else 0.0
