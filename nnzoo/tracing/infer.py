"""What an operation gives, without running it: shapes, dtypes, which outputs share storage with an input, its effects.

PyTorch's own kernels for the meta device answer. Answers are remembered by function and by the shapes of its
arguments, since some of them take a millisecond to find.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from nnzoo.tracing.effects import watched
from nnzoo.tracing.shape_rules import answer_at_once


class NeedsValues(Exception):
    """The operation cannot be answered from shapes: it reads numbers."""


@dataclass(frozen=True)
class Answer:
    """The result with meta tensors in it, those tensors, and for each the position of the input it aliases.

    Then what the operation does beside: whether it draws random numbers, whether how many depends on values, and the
    positions of the tensors among its arguments that it changes in place.
    """

    result: Any
    leaves: tuple[Tensor, ...]
    aliases: tuple[int | None, ...]
    draws: bool = False
    by_value: bool = False
    changed: tuple[int, ...] = ()


UNKNOWN = Answer(None, (), ())  # numbers decide it
_memory: dict[Any, Answer] = {}
_MEMORY_SIZE = 4096


def infer(fn: Callable, args: tuple, kwargs: dict, inputs: list[Tensor], device: torch.device | None = None) -> Answer:
    """The answer of `fn(*args, **kwargs)`, all of whose tensors are meta; `inputs` are those that may be aliased.

    `device` is where it will run: under autocast there, results have autocast's dtypes. Raises NeedsValues where the
    numbers matter, and whatever the operation itself raises on wrong shapes.
    """
    autocast = device if device is not None and torch.is_autocast_enabled(device.type) else None
    try:
        storages = [t.untyped_storage()._cdata for t in inputs]
        shared = tuple(storages.index(one) for one in storages)  # f(a, a) aliases otherwise than f(a, b)
        modes = (torch.get_default_dtype(), autocast and torch.get_autocast_dtype(autocast.type))
        key = (fn, _signature(args), _signature(kwargs), shared, modes)
        if key in _memory:
            return _memory[key]
    except TypeError:  # an argument that cannot be hashed
        key = None
    answer = _ask(fn, args, kwargs, inputs) if autocast is None else _ask_cast(fn, args, kwargs, inputs, autocast)
    if key is not None:
        if len(_memory) >= _MEMORY_SIZE:
            _memory.clear()
        _memory[key] = answer
    return answer


def _ask(fn: Callable, args: tuple, kwargs: dict, inputs: list[Tensor]) -> Answer:
    known = answer_at_once(fn, args) if not kwargs else None
    if known is not None:
        return Answer(known, (known,), (None,))
    args = at_any_position(fn, args)
    with told_by_shapes(), torch.inference_mode():  # whatever mode the body is in: answers are remembered
        result, watch = watched(fn, args, kwargs)
    leaves: list[Tensor] = []
    map_tensors(leaves.append, result)
    storages = [t.untyped_storage()._cdata for t in inputs]
    aliases = [t.untyped_storage()._cdata for t in leaves]
    shared = tuple(storages.index(a) if a in storages else None for a in aliases)
    if not watch.saw:
        return Answer(result, tuple(leaves), shared)
    given: list[Tensor] = []
    map_tensors(given.append, (args, kwargs))
    return Answer(result, tuple(leaves), shared, watch.draws, watch.by_value, watch.changed(given))


def picked(x: Tensor, index: Any) -> Tensor:
    """A part of a tensor, as one of its own."""
    return x[index].clone()


_INDEXING = {torch.Tensor.__getitem__, torch.Tensor.__setitem__, picked}


@contextmanager
def told_by_shapes() -> Iterator[None]:
    """Raises NeedsValues where an operation inside, on the meta device, reads numbers."""
    try:
        yield
    except NotImplementedError as error:
        raise NeedsValues from error
    except (RuntimeError, TypeError) as error:
        # "Tensor.item() cannot be called on meta tensors", "can't convert meta device type"; not a type's mere name
        if "meta" in str(error).replace("torch.meta.", ""):
            raise NeedsValues from error
        raise


def at_any_position(fn: Callable, args: tuple) -> tuple:
    """Arguments on the meta device; of an index, one integer is the first position: each picks a view of one shape."""
    if fn not in _INDEXING or len(args) < 2:
        return args
    return (args[0], map_tensors(lambda part: 0 if is_one_integer(part) else part, args[1]), *args[2:])


def is_one_integer(t: Tensor) -> bool:
    """Whether a tensor is a number by which one indexes; of bytes PyTorch makes masks."""
    return t.ndim == 0 and t.dtype in (torch.int64, torch.int32, torch.int16, torch.int8)


def _ask_cast(fn: Callable, args: tuple, kwargs: dict, inputs: list[Tensor], device: torch.device) -> Answer:
    """The answer under autocast, which leaves the meta device alone: fake tensors of the real device are asked."""
    from torch._subclasses.fake_tensor import FakeTensorMode  # imports PyTorch's compiler: a second, here only

    fakes: dict[int, Tensor] = {}

    def fake(t: Tensor) -> Tensor:
        if id(t) not in fakes:
            fakes[id(t)] = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=device)
        return fakes[id(t)]

    with FakeTensorMode():
        cast = [fake(t) for t in inputs]
        answer = _ask(fn, map_tensors(fake, args), map_tensors(fake, kwargs), cast)
    metas = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta") for t in answer.leaves]
    results = iter(metas)
    return replace(answer, result=map_tensors(lambda _: next(results), answer.result), leaves=tuple(metas))


def map_tensors(change: Callable[[Tensor], Any], value: Any) -> Any:
    """The same nesting of tuples, lists, dicts and slices, with every tensor changed."""
    if isinstance(value, Tensor):
        return change(value)
    if type(value) in (int, float, str, bool, type(None), type(Ellipsis)):
        return value
    if isinstance(value, tuple) and not isinstance(value, torch.Size):
        parts = [map_tensors(change, part) for part in value]
        if hasattr(value, "_fields"):
            return type(value)(*parts)
        return type(value)(parts) if type(value).__module__ == "torch.return_types" else tuple(parts)
    if isinstance(value, list):
        return [map_tensors(change, part) for part in value]
    if isinstance(value, dict):
        return {key: map_tensors(change, part) for key, part in value.items()}
    if isinstance(value, slice):
        return slice(*(map_tensors(change, part) for part in (value.start, value.stop, value.step)))
    return value


def _signature(value: Any) -> Any:
    if isinstance(value, Tensor):
        return (Tensor, tuple(value.shape), value.stride(), value.dtype)
    if isinstance(value, (tuple, list)):
        return (type(value), *(_signature(part) for part in value))
    if isinstance(value, dict):
        return (dict, *((key, _signature(part)) for key, part in value.items()))
    if isinstance(value, slice):
        return (slice, *(_signature(part) for part in (value.start, value.stop, value.step)))
    hash(value)
    return (type(value), value)


@cache
def moves(home: torch.device) -> dict[str, Callable]:
    """`to`, `cpu` and `cuda` on the meta device, whose own refuse to name a real one; `home` is where values live."""

    def to(t: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        elsewhere = device is not None and device.type not in ("meta", home.type)
        return t.to(dtype=dtype or t.dtype, copy=copy or elsewhere)

    def named(device: str) -> Callable:
        return lambda t, *args, **kwargs: to(t, device)

    return {"to": to, "cpu": named("cpu"), "cuda": named("cuda")}
