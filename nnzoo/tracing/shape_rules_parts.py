"""Rules for products of matrices, for what is picked by indices, joined or repeated, and for losses."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nnzoo.tracing.shape_rules_common import (
    FLOATS,
    Number,
    Rule,
    broadcast,
    dim_of,
    dims_of,
    in_steps,
    is_row_major,
    need,
    new,
)

_INDEX = (torch.int64, torch.int32)


# --- products --------------------------------------------------------------------------------------------------------


def _matmul(x: Tensor, y: Any) -> Tensor:
    """The product of matrices or batches of them; of what PyTorch may compute the other way round, see its parts."""
    need(isinstance(y, Tensor) and x.ndim >= 2 and y.ndim in (2, x.ndim) and x.shape[-1] == y.shape[-2])
    need(x.dtype == y.dtype and x.dtype in FLOATS)
    batch = broadcast([x.shape[:-2], y.shape[:-2]])
    return new([*batch, x.shape[-2], y.shape[-1]], x.dtype)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    need(weight.ndim == 2 and (bias is None or (bias.shape == weight.shape[:1] and bias.dtype == x.dtype)))
    return _matmul(x, weight.t())


def _mm(x: Tensor, y: Tensor) -> Tensor:
    need(x.ndim == 2)
    return _matmul(x, y)


def _bmm(x: Tensor, y: Tensor) -> Tensor:
    need(x.ndim == 3 and y.ndim == 3 and x.shape[0] == y.shape[0])
    return _matmul(x, y)


def _mv(x: Tensor, y: Tensor) -> Tensor:
    need(x.ndim == 2 and y.ndim == 1 and x.shape[1] == y.shape[0])
    need(x.dtype == y.dtype and x.dtype in FLOATS)
    return new(x.shape[:1], x.dtype)


def _dot(x: Tensor, y: Tensor) -> Tensor:
    need(x.ndim == 1 and x.shape == y.shape)
    need(x.dtype == y.dtype and x.dtype in FLOATS)
    return new([], x.dtype)


def _plus(product: Rule) -> Rule:
    """The rule of a tensor that is added to a product."""

    def added(x: Tensor, one: Tensor, other: Tensor, beta: Number = 1, alpha: Number = 1) -> Tensor:
        result = product(one, other)
        need(x.dtype == result.dtype and broadcast([x.shape, result.shape]) == result.shape)
        return result

    return added


# --- by indices ------------------------------------------------------------------------------------------------------


def _embedding(
    weight: Tensor, indices: Tensor, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False
) -> Tensor:
    need(weight.ndim == 2 and indices.dtype in _INDEX)
    return new([*indices.shape, weight.shape[1]], weight.dtype)


def _gathered(x: Tensor, dim: int, index: Tensor, sparse_grad: bool = False) -> Tensor:
    along = dim_of(x, dim)
    need(x.ndim == index.ndim and x.ndim > 0 and index.dtype in _INDEX and index.numel() > 0)
    need(all(i == along or a <= b for i, (a, b) in enumerate(zip(index.shape, x.shape, strict=True))))
    return new(index.shape, x.dtype)


def _picked(x: Tensor, indices: Sequence[Tensor | None]) -> Tensor:
    """What tensors of integers pick, which stand next to one another among the dimensions."""
    at = [i for i, one in enumerate(indices) if one is not None]
    need(bool(at) and len(indices) <= x.ndim and at[-1] - at[0] + 1 == len(at))
    need(x.is_contiguous() and is_row_major(x) and x.numel() > 0)
    given = [one for one in indices if one is not None]
    need(all(one.dtype in _INDEX for one in given) and any(one.ndim > 0 for one in given))
    return new([*x.shape[: at[0]], *broadcast([one.shape for one in given]), *x.shape[at[-1] + 1 :]], x.dtype)


# --- joined, repeated, turned ----------------------------------------------------------------------------------------


def _joined(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    first, *others = tensors
    along, shape = dim_of(first, dim), list(first.shape)
    need(first.ndim > 0 and all(t.dtype == first.dtype and t.ndim == first.ndim for t in others))
    need(all(t.is_contiguous() and t.numel() > 0 for t in tensors))
    need(all(t.shape[i] == size for t in others for i, size in enumerate(shape) if i != along))
    shape[along] = sum(t.shape[along] for t in tensors)
    return new(shape, first.dtype)


def _stacked(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    first, *others = tensors
    need(-first.ndim - 1 <= dim <= first.ndim)
    need(all(t.dtype == first.dtype and t.shape == first.shape for t in others))
    need(all(is_row_major(t) for t in tensors))
    shape = list(first.shape)
    shape.insert(dim % (first.ndim + 1), len(tensors))
    return new(shape, first.dtype)


def _repeated(x: Tensor, repeats: Sequence[int]) -> Tensor:
    need(len(repeats) >= x.ndim and all(n >= 0 for n in repeats))
    sizes = [*[1] * (len(repeats) - x.ndim), *x.shape]
    return new([n * size for n, size in zip(repeats, sizes, strict=True)], x.dtype)


def _flipped(x: Tensor, dims: Sequence[int]) -> Tensor:
    dims_of(x, dims)
    return in_steps(x, dtype=x.dtype)


def _rolled(x: Tensor, shifts: Sequence[int], dims: Sequence[int] = ()) -> Tensor:
    need(len(shifts) == len(dims) and len(dims) > 0 and x.ndim > 0 and x.numel() > 0 and is_row_major(x))
    dims_of(x, dims)
    return new(x.shape, x.dtype)


def _triangle(x: Tensor, diagonal: int = 0) -> Tensor:
    need(x.ndim >= 2 and is_row_major(x))
    return new(x.shape, x.dtype)


def _new_like(x: Tensor, *_: Any, dtype: torch.dtype | None = None, device: Any = None, **given: Any) -> Tensor:
    need(not any(given.values()) and (device is None or torch.device(device).type == "meta"))
    return in_steps(x, dtype=dtype or x.dtype)


# --- losses ----------------------------------------------------------------------------------------------------------


def _by_element(x: Tensor, target: Tensor, reduction: int = 1) -> Tensor:
    need(x.dtype == target.dtype and x.dtype in FLOATS)
    each = in_steps(x, target, dtype=x.dtype)
    return each if reduction == 0 else new([], x.dtype)


def _smooth(x: Tensor, target: Tensor, reduction: int = 1, beta: Number = 1.0) -> Tensor:
    return _by_element(x, target, reduction)


def _nll_loss(
    x: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    need(x.ndim == 2 and target.ndim == 1 and x.shape[0] == target.shape[0] and target.dtype == torch.int64)
    need(x.dtype in FLOATS and weight is None)
    return new(target.shape if reduction == 0 else [], x.dtype), new([], x.dtype)


_TABLE: list[tuple[Rule, str]] = [
    (_matmul, "matmul.default"),
    (_linear, "linear.default"),
    (_mm, "mm.default"),
    (_bmm, "bmm.default"),
    (_mv, "mv.default"),
    (_dot, "dot.default"),
    (_plus(_mm), "addmm.default"),
    (_plus(_bmm), "baddbmm.default"),
    (_plus(_mv), "addmv.default"),
    (_embedding, "embedding.default"),
    (_gathered, "gather.default"),
    (_picked, "index.Tensor"),
    (_joined, "cat.default"),
    (_stacked, "stack.default"),
    (_repeated, "repeat.default"),
    (_flipped, "flip.default"),
    (_rolled, "roll.default"),
    (_triangle, "tril.default triu.default"),
    (_new_like, "zeros_like.default ones_like.default empty_like.default full_like.default"),
    (_by_element, "mse_loss.default"),
    (_smooth, "smooth_l1_loss.default huber_loss.default"),
    (_nll_loss, "nll_loss_forward.default"),
]
PARTS = {name: rule for rule, names in _TABLE for name in names.split()}
