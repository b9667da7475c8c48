"""The types of numbers: their names in a safetensors header and in torch, and their bytes.

Source: safetensors 0.8, `safetensors/src/tensor.rs` and `safetensors.torch._TYPES`.
"""

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy as np

_TABLE: Final[dict[str, tuple[int | float, str]]] = {
    "BOOL": (1, "bool"),
    "U8": (1, "uint8"), "I8": (1, "int8"), "U16": (2, "uint16"), "I16": (2, "int16"),
    "U32": (4, "uint32"), "I32": (4, "int32"), "U64": (8, "uint64"), "I64": (8, "int64"),
    "F4": (0.5, ""), "F6_E2M3": (0.75, ""), "F6_E3M2": (0.75, ""),
    "F8_E4M3": (1, "float8_e4m3fn"), "F8_E5M2": (1, "float8_e5m2"), "F8_E8M0": (1, ""),
    "F8_E4M3FNUZ": (1, "float8_e4m3fnuz"), "F8_E5M2FNUZ": (1, "float8_e5m2fnuz"),
    "F16": (2, "float16"), "BF16": (2, "bfloat16"), "F32": (4, "float32"), "F64": (8, "float64"),
    "C64": (8, "complex64"),
}  # fmt: skip

DTYPE_BYTES: Final = {name: size for name, (size, _) in _TABLE.items()}
"""Bytes of one element, by the name that a safetensors header uses."""
TORCH_NAMES: Final = {name: torch for name, (_, torch) in _TABLE.items() if torch}
"""Names in torch, such as `float32`, by those in a header; without what safetensors alone has."""
HEADER_NAMES: Final = {torch: name for name, torch in TORCH_NAMES.items()}
"""Names in a header, such as `F32`, by those in torch."""
FLOATS: Final = ("F32", "F16", "BF16")
"""Names in a header of the types that weights are copied, trained and merged in."""


def numpy_type(dtype: str) -> "np.dtype[Any]":
    """Numpy's type for a name in a header, in a file's order of bytes.

    Args:
        dtype: one of `FLOATS`.
    """
    import ml_dtypes
    import numpy as np

    types: dict[str, Any] = {"F32": "<f4", "F16": "<f2", "BF16": ml_dtypes.bfloat16}
    found: np.dtype[Any] = np.dtype(types[dtype])
    return found
