"""What rules of shape and dtype are made of: when one steps aside, broadcasting, and the strides of what is new.

A rule knows one of PyTorch's operators. It gives tensors on the meta device, exactly those that PyTorch's own meta
kernel gives, or it raises StepsAside: then that kernel is asked, and answers or raises its own error.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

Rule = Callable[..., Any]
Shape = Sequence[int]
Number = int | float | bool

HALVES = frozenset({torch.float16, torch.bfloat16})
FLOATS = HALVES | {torch.float32, torch.float64}
INTEGERS = frozenset({torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8})
KNOWN = FLOATS | INTEGERS | {torch.bool}
_PLAIN = (Tensor, torch.nn.Parameter)


class StepsAside(Exception):
    """These arguments are not for a rule: PyTorch's own kernel is to be asked."""


def need(condition: bool) -> None:
    """Step aside unless a condition holds."""
    if not condition:
        raise StepsAside


def is_known(value: Any) -> bool:
    """Whether all tensors in an argument are plain ones on the meta device, and all its numbers plain numbers."""
    if isinstance(value, Tensor):
        return (
            type(value) in _PLAIN
            and value.is_meta
            and value.layout is torch.strided
            and value.dtype in KNOWN
            and not value.is_neg()
        )
    if isinstance(value, (list, tuple)):
        return all(is_known(part) for part in value)
    if isinstance(value, dict):
        return all(is_known(part) for part in value.values())
    return not isinstance(value, (complex, torch.SymInt, torch.SymFloat, torch.SymBool, torch.Generator))


def new(shape: Shape, dtype: torch.dtype) -> Tensor:
    """A contiguous tensor."""
    return torch.empty(shape, dtype=dtype, device="meta")


def _packed(shape: Shape) -> list[int]:
    """The strides of a contiguous tensor."""
    strides, step = [1] * len(shape), 1
    for i in range(len(shape) - 1, -1, -1):
        strides[i] = step
        step *= max(shape[i], 1)
    return strides


def dims_of(x: Tensor, dims: int | Sequence[int] | None) -> list[int]:
    """The dimensions that are meant, counted from the first; of none, all."""
    every = x.ndim or 1
    if dims is None or dims == [] or dims == ():
        return list(range(x.ndim))
    given = [dims] if isinstance(dims, int) else dims
    need(all(-every <= dim < every for dim in given))
    found = [dim % every for dim in given]
    need(len(set(found)) == len(found))
    return found


def dim_of(x: Tensor, dim: int) -> int:
    """A dimension, counted from the first."""
    return dims_of(x, dim)[0]


# --- elementwise -----------------------------------------------------------------------------------------------------


def broadcast(shapes: Iterable[Shape]) -> tuple[int, ...]:
    """The shape to which all of these are broadcast."""
    first, *others = shapes
    for shape in others:
        if shape != first:
            first = _broadcast(first, shape)
    return tuple(first)


def _broadcast(one: Shape, other: Shape) -> tuple[int, ...]:
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    shape = list(longer)
    for i, size in enumerate(shorter, start=len(longer) - len(shorter)):
        if shape[i] == 1:
            shape[i] = size
        need(size in (1, shape[i]))
    return tuple(shape)


def elementwise(*operands: Any, dtype: torch.dtype, computed: torch.dtype | None = None) -> Tensor:
    """A tensor with an element for each of the operands' elements, its dimensions in memory ordered as theirs are.

    `computed` is the dtype that operands are converted to first, which packs those with gaps. What it does to a
    contiguous one whose dimensions of one element have odd strides is not known here.
    """
    tensors = [one for one in operands if isinstance(one, Tensor)]
    shape = broadcast([t.shape for t in tensors])
    if all(is_row_major(t) for t in tensors):
        return new(shape, dtype)
    if computed is not None and any(t.dtype != computed for t in tensors):
        need(all(is_row_major(t) or not t.is_contiguous() for t in tensors))
        tensors = [t if t.dtype == computed or t.is_contiguous() else t.clone() for t in tensors]
    order = _order(shape, [t if t.shape == shape else t.expand(shape) for t in tensors])
    strides = [0] * len(shape)
    for dim, stride in zip(order, _packed([shape[dim] for dim in order]), strict=True):
        strides[dim] = stride
    return torch.empty_strided(shape, strides, dtype=dtype, device="meta")


def in_steps(*operands: Any, dtype: torch.dtype) -> Tensor:
    """As `elementwise`, of an operator that PyTorch computes in several steps, each of which may arrange anew.

    Where the arrangement of the operands leaves no doubt, all steps agree; else the rule steps aside.
    """
    tensors = [one for one in operands if isinstance(one, Tensor)]
    if all(is_row_major(t) for t in tensors):
        return new(broadcast([t.shape for t in tensors]), dtype)
    need(len(tensors) == 1 and min(tensors[0].shape) > 1)
    strides = tensors[0].stride()
    need(min(strides) > 0 and len(set(strides)) == len(strides))
    return elementwise(*tensors, dtype=dtype)


def is_row_major(x: Tensor) -> bool:
    """Whether memory is in the order of the dimensions, maybe with gaps."""
    if x.is_contiguous() and min(x.shape, default=0) > 1:
        return True
    inner, size = 1, 1
    for length, stride in zip(reversed(x.shape), reversed(x.stride()), strict=True):
        if stride < inner * size:
            return False
        inner, size = stride, max(length, 1)
    return True


def _order(shape: Shape, tensors: list[Tensor]) -> list[int]:
    """The dimensions from the outermost in memory to the innermost, as PyTorch's iterator over operands has them."""
    n = len(shape)
    if n < 2:
        return list(range(n))
    contiguous = all(t.is_contiguous() for t in tensors)
    channels_last = n == 4 and all(t.is_contiguous(memory_format=torch.channels_last) for t in tensors)
    if contiguous and not channels_last:
        return list(range(n))
    if channels_last and not contiguous:
        return [0, 2, 3, 1]
    strides = [t.stride() for t in tensors]
    order = list(range(n - 1, -1, -1))  # from the innermost; an insertion sort, for which some pairs are undecided
    for i in range(1, n):
        at = i
        for before in range(i - 1, -1, -1):
            decided = _compare(order[before], order[at], shape, strides)
            if decided > 0:
                order[before], order[at] = order[at], order[before]
                at = before
            elif decided < 0:
                break
    return order[::-1]


def _compare(a: int, b: int, shape: Shape, strides: list[tuple[int, ...]]) -> int:
    """Negative where dimension `a` lies inside `b`, positive where outside, 0 where the strides do not tell."""
    for one in strides:
        if one[a] == 0 or one[b] == 0:
            continue
        if one[a] == one[b]:
            if _covers(shape[b], shape[a]):
                continue
            return 1
        return -1 if _covers(one[b], one[a]) else 1
    return 0


def _covers(a: int, b: int) -> bool:
    return b == 0 or (a != 0 and (a >= b or a % b == 0))
