"""A processor whose kernels sum in another order under other conditions, for any machine.

What real ones do at some shapes, this one does at every shape: rows, strides, threads, the address
of a matrix in memory, gradients and the weight's own flag each move where a sum begins.
What is compared bit for bit under it was computed under the same conditions. To run tests on it:
`PYTHONPATH=tests pytest -p other_processor tests/unit/verification/test_verify.py`.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_BY_ROW = (functional.linear, functional.scaled_dot_product_attention)
_PRODUCTS = (torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm, torch.mm)
_OPERANDS = {**dict.fromkeys((*_BY_ROW, *_PRODUCTS), 0), torch.addmm: 1, torch.baddbmm: 1}
"""Where the two factors of each function stand among its arguments."""


class OtherProcessor(TorchFunctionMode):
    """While it is entered, each sum of products begins at an index that its conditions choose."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Let every function do its work; see `TorchFunctionMode`."""
        first = _OPERANDS.get(func)
        if first is not None and all(_is_plain(operand) for operand in args[first : first + 2]):
            args = (*args[:first], *_turned(func, *args[first : first + 2]), *args[first + 2 :])
        return func(*args, **(kwargs or {}))


@contextmanager
def other_processor() -> Iterator[None]:
    """Compute as on such a processor."""
    with OtherProcessor():
        yield


def _turned(
    func: Any, rows: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Both operands with what is summed over moved round by as much as the conditions say."""
    conditions = (
        weight.requires_grad,
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        tuple(rows.shape[:-1]),
        *(operand.is_contiguous() for operand in (rows, weight)),
        *(operand.data_ptr() % 64 for operand in (rows, weight)),
    )
    shift = zlib.crc32(repr(conditions).encode()) % rows.shape[-1]
    dim = -1 if func in _BY_ROW or weight.dim() == 1 else -2
    return rows.roll(shift, -1), weight.roll(shift, dim)


def _is_plain(operand: Any) -> bool:
    kinds = (torch.Tensor, torch.nn.Parameter)
    return type(operand) in kinds and operand.device.type == "cpu" and operand.dim() > 0


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    """Run each test and its fixtures on it, where this file is a plugin."""
    with other_processor():
        yield
