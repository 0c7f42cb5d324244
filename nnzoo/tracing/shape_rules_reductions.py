"""Rules for operators along dimensions: sums, norms, extremes, softmax, what is sorted, what is accumulated."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nnzoo.tracing.shape_rules_common import (
    FLOATS,
    HALVES,
    Number,
    Rule,
    dim_of,
    dims_of,
    in_steps,
    is_row_major,
    need,
    new,
)
from nnzoo.tracing.shape_rules_elementwise import floating

Dims = int | Sequence[int] | None


def _reduced(x: Tensor, dims: Dims, keepdim: bool, dtype: torch.dtype) -> Tensor:
    need(x.numel() > 0)
    gone = dims_of(x, dims)
    if keepdim:
        return new([1 if i in gone else size for i, size in enumerate(x.shape)], dtype)
    return new([size for i, size in enumerate(x.shape) if i not in gone], dtype)


def _sum(x: Tensor, dim: Dims = None, keepdim: bool = False, dtype: torch.dtype | None = None) -> Tensor:
    need(dtype is None or dtype in FLOATS)
    return _reduced(x, dim, keepdim, dtype or (x.dtype if x.dtype in FLOATS else torch.int64))


def _sum_of_all(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return _sum(x, dtype=dtype)


def _mean(x: Tensor, dim: Dims = None, keepdim: bool = False, dtype: torch.dtype | None = None) -> Tensor:
    need((dtype or x.dtype) in FLOATS)
    return _reduced(x, dim, keepdim, dtype or x.dtype)


def _mean_of_all(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return _mean(x, dtype=dtype)


def _variance(x: Tensor, dim: Dims = None, correction: Number | None = None, keepdim: bool = False) -> Tensor:
    need(x.dtype in FLOATS)
    return _reduced(x, dim, keepdim, x.dtype)


def _variance_and_mean(x: Tensor, dim: Dims = None, **given: Any) -> tuple[Tensor, Tensor]:
    return _variance(x, dim, **given), _variance(x, dim, **given)


def _extreme(x: Tensor, dim: Dims = (), keepdim: bool = False) -> Tensor:
    return _reduced(x, dim, keepdim, x.dtype)


def _where_extreme(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    return _reduced(x, dim, keepdim, torch.int64)


def _truth(x: Tensor, dim: Dims = None, keepdim: bool = False) -> Tensor:
    need(x.dtype != torch.uint8 and dim != [] and dim != ())
    return _reduced(x, dim, keepdim, torch.bool)


def _log_sum_exp(x: Tensor, dim: Dims, keepdim: bool = False) -> Tensor:
    need(dim != [])
    return _reduced(x, dim, keepdim, floating(x.dtype))


def _norm(
    x: Tensor, ord: Number = 2, dim: Dims = None, keepdim: bool = False, dtype: torch.dtype | None = None
) -> Tensor:
    need(x.dtype in FLOATS and dtype in (None, x.dtype))
    return _reduced(x, dim, keepdim, x.dtype)


def _log_softmax(x: Tensor, dim: int, half_to_float: bool = False) -> Tensor:
    need(is_row_major(x) or not x.is_contiguous())
    return _softmax(x, dim, half_to_float)


def _softmax_to(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    need(dtype in (None, x.dtype))
    return _softmax(x, dim)


def _log_softmax_to(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    need(dtype in (None, x.dtype))
    return _log_softmax(x, dim)


def _softmax(x: Tensor, dim: int, half_to_float: bool = False) -> Tensor:
    need(x.dtype in FLOATS and not half_to_float)
    dim_of(x, dim)
    return new(x.shape, x.dtype)


def _layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: Number = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    return _layer_norm_and_statistics(x, normalized_shape, weight, bias, eps)[0]


def _layer_norm_and_statistics(
    x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: Number
) -> tuple[Tensor, Tensor, Tensor]:
    shape, n = tuple(normalized_shape), len(normalized_shape)
    need(is_row_major(x) or not x.is_contiguous())
    need(n > 0 and x.dtype in FLOATS and tuple(x.shape[x.ndim - n :]) == shape)
    need(
        all(
            one is None or (one.shape == shape and one.dtype == x.dtype and is_row_major(one)) for one in (weight, bias)
        )
    )
    of_rows = [*x.shape[: x.ndim - n], *[1] * n]
    wide = torch.float32 if x.dtype in HALVES else x.dtype
    return new(x.shape, x.dtype), new(of_rows, wide), new(of_rows, wide)


def _accumulated(x: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    need(dtype is None and is_row_major(x))
    dim_of(x, dim)
    return new(x.shape, x.dtype if x.dtype in FLOATS else torch.int64)


def _sorted(x: Tensor, *args: Any, **given: Any) -> tuple[Tensor, Tensor]:
    return in_steps(x, dtype=x.dtype), in_steps(x, dtype=torch.int64)


def _sorted_along(x: Tensor, dim: int = -1, descending: bool = False) -> tuple[Tensor, Tensor]:
    dim_of(x, dim)
    return _sorted(x)


def _sorted_stably(
    x: Tensor, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> tuple[Tensor, Tensor]:
    return _sorted_along(x, dim)


def _top(x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> tuple[Tensor, Tensor]:
    need(x.ndim > 0)
    along, shape = dim_of(x, dim), list(x.shape)
    need(0 <= k <= shape[along])
    shape[along] = k
    return new(shape, x.dtype), new(shape, torch.int64)


_TABLE: list[tuple[Rule, str]] = [
    (_sum, "sum.dim_IntList"),
    (_sum_of_all, "sum.default"),
    (_mean, "mean.dim"),
    (_mean_of_all, "mean.default"),
    (_variance, "var.correction std.correction"),
    (_variance_and_mean, "var_mean.correction std_mean.correction"),
    (_extreme, "amax.default amin.default"),
    (_where_extreme, "argmax.default argmin.default"),
    (_truth, "any.default any.dim any.dims all.default all.dim all.dims"),
    (_log_sum_exp, "logsumexp.default"),
    (_norm, "linalg_vector_norm.default"),
    (_softmax, "_softmax.default _safe_softmax.default"),
    (_softmax_to, "softmax.int"),
    (_log_softmax_to, "log_softmax.int"),
    (_log_softmax, "_log_softmax.default"),
    (_layer_norm, "layer_norm.default"),
    (_layer_norm_and_statistics, "native_layer_norm.default"),
    (_accumulated, "cumsum.default cumprod.default"),
    (_sorted_along, "sort.default"),
    (_sorted_stably, "sort.stable"),
    (_top, "topk.default"),
]
REDUCTIONS = {name: rule for rule, names in _TABLE for name in names.split()}
