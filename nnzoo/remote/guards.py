"""Numbers on which PyTorch's kernels (2.13) end the process, or reach beyond a tensor; looked at before a call runs."""

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


def _pivots(values: list) -> None:
    """LAPACK's are looked at by PyTorch; on a GPU rows beyond the matrix would be read and written."""
    pivots = [one for one in values if isinstance(one, Tensor) and one.dtype in _SIGNED and one.numel()]
    if any(int(one.min()) < 1 or int(one.max()) > one.shape[-1] for one in pivots):
        raise ValueError("pivots are rows of their matrix, from 1 on")


_SIGNED = (torch.int8, torch.int16, torch.int32, torch.int64)
_CHECKS = {"linalg_eigvals": _finite, "lu_solve": _pivots, "linalg_lu_solve": _pivots} | dict.fromkeys(
    ("div", "divide", "div_", "divide_"), _no_overflow
)
