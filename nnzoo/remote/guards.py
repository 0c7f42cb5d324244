"""Numbers on which PyTorch's kernels (2.13, CPU) end the process; they are looked at before such a call runs."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nnzoo.tracing.arguments import flat, name_of


def guarded(fn: Callable) -> bool:
    """Whether a function's numbers are to be looked at."""
    return name_of(fn) in _CHECKS


def check_numbers(fn: Callable, args: Any, kwargs: Any) -> None:
    """Raise ValueError for values with which a guarded function is not safe to call."""
    _CHECKS[name_of(fn)]([*flat(args), *flat(kwargs)])


def _finite(values: list) -> None:
    if any(isinstance(one, Tensor) and not bool(one.isfinite().all()) for one in values):
        raise ValueError("eigenvalues of a matrix with infinities or NaNs")


def _no_overflow(values: list) -> None:
    signed = [one for one in values if isinstance(one, Tensor) and one.dtype in _SIGNED]
    by = any(type(one) is int and one == -1 for one in values) or any(bool((one == -1).any()) for one in signed)
    if by and any(bool((one == torch.iinfo(one.dtype).min).any()) for one in signed):
        raise ValueError("the least integer divided by -1")


_SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64)
_CHECKS = {"linalg_eigvals": _finite} | dict.fromkeys(("div", "divide", "div_", "divide_"), _no_overflow)
