"""Arguments of recorded calls: which of them are lazy, which are edited, what stands for them in the graph."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from nnzoo.tracing.graph import Node
from nnzoo.tracing.infer import is_one_integer, map_tensors
from nnzoo.tracing.lazy import LazyTensor

_EDITS = {"__setitem__", "__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__"}


class Gone:
    """Stands for a tensor that was let go of."""

    __slots__ = ("dtype", "shape")

    def __init__(self, t: Tensor) -> None:
        self.shape, self.dtype = t.shape, t.dtype


def to_meta(t: Tensor) -> Tensor:
    """A tensor's shape, strides and dtype, without its numbers."""
    if isinstance(t, LazyTensor):
        return t._node.meta
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")


def name_of(fn: Any) -> str:
    """A function's name; for the getter of a tensor's attribute, the attribute's."""
    name = getattr(fn, "__name__", "")
    if isinstance(fn, torch._ops.OpOverload):
        return name.partition(".")[0]
    return fn.__self__.__name__ if name in ("__get__", "__set__") else name


def lazies(value: Any) -> list[LazyTensor]:
    """The traced values in a nesting of arguments, in order."""
    found: list[LazyTensor] = []
    map_tensors(lambda t: found.append(t) if isinstance(t, LazyTensor) else None, value)
    return found


def edited(name: str, args: tuple, kwargs: dict) -> Tensor | None:
    """The tensor that a function changes in place."""
    if kwargs.get("out") is not None:
        return kwargs["out"]
    in_place = name in _EDITS or (name.endswith("_") and not name.endswith("__")) or kwargs.get("inplace") is True
    first = args[0] if args else next(iter(kwargs.values()), None)  # nn.init.constant_ names even its first
    return first if in_place and isinstance(first, Tensor) else None


def index_metas(index: Any) -> list[Tensor]:
    """The tensors of an index, as meta tensors."""
    found: list[Tensor] = []
    map_tensors(lambda t: found.append(to_meta(t)), index)
    return found


def with_numbers(index: Any, of: Tensor) -> Any:
    """An index in which real tensors have become numbers: a mask the positions that it picks, one integer itself.

    Raises IndexError for a mask that is not of the shape of what it picks from.
    """
    parts = index if isinstance(index, tuple) else (index,)
    if not any(_is_real(part) for part in parts):
        return index
    meta = to_meta(of)
    if meta is not None and any(_is_mask(part) for part in parts):
        _check_masks(parts, meta.shape)
    flat = tuple(one for part in parts for one in (_numbers(part) if _is_real(part) else (part,)))
    return flat if isinstance(index, tuple) or len(flat) != 1 else flat[0]


def picks_by_traced_integers(index: Any) -> bool:
    """Whether an index picks one part, for which a number would give a view, and only the run knows which."""
    parts = [part for part in (index if isinstance(index, tuple) else (index,)) if isinstance(part, (Tensor, list))]
    metas = [part._node.meta if isinstance(part, LazyTensor) else None for part in parts]
    return bool(metas) and all(meta is not None and is_one_integer(meta) for meta in metas)


def _numbers(part: Tensor) -> tuple:
    if _is_mask(part):
        return part.nonzero(as_tuple=True) if part.ndim else (bool(part),)
    return (int(part),) if is_one_integer(part) else (part,)


def _is_real(part: Any) -> bool:
    return isinstance(part, Tensor) and not isinstance(part, LazyTensor)


def _is_mask(part: Any) -> bool:
    return _is_real(part) and part.dtype == torch.bool


def _check_masks(parts: tuple, shape: torch.Size) -> None:
    widths = [_width(part) for part in parts]
    for i, part in enumerate(parts):
        if _is_mask(part):
            at = len(shape) - sum(widths[i:]) if any(one is Ellipsis for one in parts[:i]) else sum(widths[:i])
            picked = list(shape[at : at + part.ndim])
            if picked != list(part.shape):
                raise IndexError(f"a mask {list(part.shape)} cannot pick from axes {picked} of {list(shape)}")


def _width(part: Any) -> int:
    """How many axes a part of an index takes."""
    if part is None or part is Ellipsis or isinstance(part, bool):
        return 0
    meta = to_meta(part) if isinstance(part, Tensor) else None
    return 1 if meta is None or meta.dtype != torch.bool else meta.ndim


def with_nodes(value: Any) -> Any:
    """Arguments with the node of every traced value in its place."""
    return map_tensors(lambda t: t._node if isinstance(t, LazyTensor) else t, value)


def operands(value: Any) -> tuple[tuple[Node, ...], list[Tensor]]:
    """The nodes and the constant tensors in a nesting of arguments."""
    nodes: list[Node] = []
    constants: list[Tensor] = []
    for part in flat(value):
        if isinstance(part, Node):
            nodes.append(part)
        elif isinstance(part, Tensor):
            constants.append(part)
    return tuple(nodes), constants


def flat(value: Any) -> Iterator[Any]:
    """The leaves of a nesting of arguments."""
    if isinstance(value, (tuple, list)):
        for part in value:
            yield from flat(part)
    elif isinstance(value, dict):
        yield from flat(tuple(value.values()))
    elif isinstance(value, slice):
        yield from flat((value.start, value.stop, value.step))
    else:
        yield value


def stand_in(t: Tensor, device: torch.device, fill: float | None = None) -> Tensor:
    """A real tensor of a traced value's shape and dtype, without its numbers and (unless filled) without its memory."""
    if not isinstance(t, LazyTensor):
        return t
    meta = t._node.meta
    if fill is not None:
        return torch.full(meta.shape, fill, dtype=meta.dtype, device=device)
    return torch.empty((), dtype=meta.dtype, device=device).expand(meta.shape)


def call_with(fn: Callable, change: Callable[[Tensor], Any], args: tuple, kwargs: dict) -> Any:
    """`fn` of the arguments, with every tensor changed."""
    return fn(*map_tensors(change, args), **map_tensors(change, kwargs))
