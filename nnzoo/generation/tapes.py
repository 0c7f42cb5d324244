"""Tapes: a step on the CPU without the Python around its operations.

For one token a row an operation takes a few microseconds, and so does what asks for it: modules, hook points, arguments
that are worked out anew. A tape has the operations that the step came down to, with the tensors that they had and the
memory where their results stand. Repeating it is a call for each, of the same kernels in the same order, so the
numbers are the usual ones to the last bit. What grows with the text is live: it is found again at each replay, by the
same Python as the first time.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nnzoo.architectures.attention import span_of
from nnzoo.architectures.kv_cache import KVCache, StepCache
from nnzoo.architectures.products import followed

Call = Callable[[], Any]

# PyTorch's quicker way from Python to these operations, half as long as by their overloads. The first take `out`; the
# results of others are copied.
_FUNCTIONS, _NN = torch._C._VariableFunctions, torch._C._nn
_WITH_OUT = {name: getattr(_FUNCTIONS, name) for name in "add addmm cat cos mean mm mul neg pow rsqrt sin".split()}
_WITH_OUT |= {"gelu": _NN.gelu, "silu": _NN.silu}
_QUICK = {name: getattr(_FUNCTIONS, name) for name in ("embedding", "layer_norm", "native_layer_norm", "transpose")}
_QUICK |= {"scaled_dot_product_attention": _NN.scaled_dot_product_attention}
_NOTHING = torch.empty(0)  # made once: what lets go of a tape may run anywhere, under a mode that counts too
_ATTENTION = "scaled_dot_product"  # in the names of operations that look at many keys, and whose result does not grow


class Tape(TorchDispatchMode):
    """Writes down operations; the calls that it gives, one after the other, do them again.

    >>> x, tape = torch.zeros(1), Tape()
    >>> y, calls = tape.written(lambda: (x + 1) * 2)
    >>> _ = x.fill_(5)
    >>> for call in calls:
    ...     _ = call()
    >>> y
    tensor([12.])
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[Call] = []
        self._found: list[Tensor] = []  # what is live, as it was found last
        self._live: dict[int, tuple[int, Tensor]] = {}  # its place there, by the first one's id; kept, so the id is too
        self._writes = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else PyTorch's compiler is imported, two seconds, to keep away from what is never compiled

    def written(self, work: Callable[[], Tensor]) -> tuple[Tensor, list[Call]]:
        """What some work gives, and the calls that do it again, and leave their result in the same tensor.

        What is live in one piece of work is so in the next, and has been found again if the first was done again.
        Raises RuntimeError where an operation gives Python a number: it could be another one at a replay.
        """
        calls: list[Call] = []
        self._calls = calls
        self._writes = True
        try:
            with followed(), self:
                output = self.settled(work())
        finally:
            self._writes, self._calls = False, []
        return output, calls

    def live(self, function: Callable[..., Any], *args: Any) -> Any:
        """What a function gives, which is called at each replay; the tensors that it gives, in a tuple, are live."""
        if not self._writes:
            return function(*args)
        with self._resting():
            result = function(*map(self.now, args))
        check_class(*_tensors(result))
        self._find_again(self._asked(function, args, {}), result)
        return result

    def settled(self, x: Tensor) -> Tensor:
        """What is live, but never grows, in memory of its own: what is made of it is not live."""
        if id(x) not in self._live:
            return x
        found, (place, _) = self._found, self._live[id(x)]
        with self._resting():
            fixed = found[place].clone()
        self._calls.append(lambda: fixed.copy_(found[place]))
        return fixed

    def now(self, x: Any) -> Any:
        """What is live, as it was found last; anything else as it is."""
        return self._found[self._live[id(x)][0]] if id(x) in self._live else x

    def forget(self) -> None:
        """Let go of what is live, until it is found again; what follows cannot use it."""
        self._live.clear()
        self._found[:] = [_NOTHING] * len(self._found)

    def __torch_dispatch__(self, fn: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if not self._writes:
            return fn(*args, **kwargs)
        name, changes, by_value = _kind(fn)
        given = _tensors((*args, *kwargs.values()))
        is_live = any(id(x) in self._live for x in given)
        ask = self._asked(_QUICK.get(name, fn), args, kwargs)
        result = ask()
        if by_value or not isinstance(result, Tensor | list | tuple):
            raise RuntimeError(f"{fn} depends on numbers, which may be others in the next step")
        if changes:
            self._calls.append(ask)
        elif is_live and _ATTENTION not in name:
            self._find_again(ask, result)
        elif is_live or not _is_view(result, given):
            self._calls.append(_copying(ask, result) if is_live else _into(result, ask, name, args, kwargs))
        return result

    def _find_again(self, ask: Call, result: Any) -> None:
        """Look at each replay for what is live."""
        found, start = self._found, len(self._found)
        for x in _tensors(result):
            self._live[id(x)] = len(found), x
            found.append(x)
        stop = len(found)

        def find() -> None:
            found[start:stop] = _tensors(ask())

        self._calls.append(find)

    def _asked(self, function: Callable[..., Any], args: tuple, kwargs: dict) -> Call:
        """A call with the same arguments, what is live among them as it is then."""
        places = [(i, later) for i, x in enumerate(args) if (later := self._later(x)) is not None]
        names = [(key, later) for key, x in kwargs.items() if (later := self._later(x)) is not None]
        if not places and not names:
            return partial(function, *args, **kwargs)

        def ask() -> Any:
            now, named = list(args), dict(kwargs)
            for i, later in places:
                now[i] = later()
            for key, later in names:
                named[key] = later()
            return function(*now, **named)

        return ask

    def _later(self, x: Any) -> Callable[[], Any] | None:
        """How to find what is live, or has it in it; None: there is nothing to find."""
        if id(x) in self._live:
            return partial(self._found.__getitem__, self._live[id(x)][0])
        parts = [self._later(part) for part in x] if isinstance(x, list | tuple) else []
        if not any(parts):
            return None
        return lambda: [part if later is None else later() for part, later in zip(x, parts, strict=True)]

    @contextmanager
    def _resting(self) -> Iterator[None]:
        self._writes = False
        try:
            yield
        finally:
            self._writes = True


class LiveCache(StepCache):
    """A KV cache as the step on a tape sees it: what it does is done again at each replay, with the tokens of then.

    `n_ctx` and `window` are those of the model, as for `span_of`.
    """

    def __init__(self, tape: Tape, n_ctx: int, window: int | None) -> None:
        self._tape, self._n_ctx, self._window = tape, n_ctx, window
        self.cache: KVCache | None = None  # which it is, with its numbers

    def advance(self) -> tuple[Int[Tensor, "batch 1"], Bool[Tensor, "batch 1 1 key"] | None]:
        """Where the next token stands in each prompt, and what it may look at; None: everything."""
        positions, mask = self._tape.live(self._place)
        return self._tape.settled(positions), mask

    def append(
        self, layer: int, k: Float[Tensor, "batch 1 kv_head d_head"], v: Float[Tensor, "batch 1 kv_head d_head"]
    ) -> tuple[Float[Tensor, "batch key_pos kv_head d_head"], Float[Tensor, "batch key_pos kv_head d_head"]]:
        """Add the token's keys and values to a layer; what comes back are those that it may look at."""
        return self._tape.live(self._append, layer, k, v)

    def _append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        assert self.cache is not None
        return self.cache.append(layer, k, v)

    def _place(self) -> tuple[Tensor, Tensor | None]:
        assert self.cache is not None
        keys, _ = self.cache.layers[0].buffers
        any_token = torch.zeros(len(keys), 1, dtype=torch.long, device=keys.device)  # not on the default device of then
        span = span_of(any_token, None, self.cache, n_ctx=self._n_ctx, window=self._window)
        return span.positions, span.mask


def check_class(*values: Tensor) -> None:
    """Raise RuntimeError for a class of its own: what is made of it is wrapped again, and not known for live."""
    for x in values:
        if type(x) is not Tensor:
            raise RuntimeError(f"a tensor is of a class of its own, {type(x).__name__}")


@cache
def _kind(fn: Any) -> tuple[str, bool, bool]:
    """An operation's name, whether it changes what it is given, and whether numbers decide on its result's size."""
    by_value = torch.Tag.dynamic_output_shape in fn.tags or torch.Tag.data_dependent_output in fn.tags
    return fn._schema.name.removeprefix("aten::"), fn._schema.is_mutable, by_value


def _into(result: Any, ask: Call, name: str, args: tuple, kwargs: dict) -> Call:
    """A call that does an operation again, to where its result stands."""
    if name in _WITH_OUT:
        return partial(_WITH_OUT[name], *args, **kwargs, out=result)
    if name in _OTHERWISE:
        return _OTHERWISE[name](*args, out=result)
    return _copying(ask, result)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, out: Tensor) -> Call:
    """The product x W^T + b, past what PyTorch does to find out that it is one of matrices."""
    if not (x.is_contiguous() and out.is_contiguous() and weight.dim() == 2):
        return _copying(partial(torch.nn.functional.linear, x, weight, bias), out)
    rows, results = x.view(-1, x.shape[-1]), out.view(-1, out.shape[-1])
    if bias is None:
        return partial(torch.mm, rows, weight.t(), out=results)
    return partial(torch.addmm, bias, rows, weight.t(), out=results)


def _rolled(x: Tensor, shifts: list[int], dims: Sequence[int] = (), *, out: Tensor) -> Call:
    """A tensor whose end is its beginning, put together from both."""
    if len(shifts) != 1 or len(dims) != 1:
        return _copying(partial(torch.roll, x, shifts, list(dims)), out)
    size = x.shape[dims[0]]
    return partial(torch.cat, x.split([size - shifts[0] % size, shifts[0] % size], dims[0])[::-1], dims[0], out=out)


_OTHERWISE: dict[str, Callable[..., Call]] = {"linear": _product, "roll": _rolled}  # by other operations


def _copying(ask: Call, result: Any) -> Call:
    """A call whose result goes to where an earlier one stands."""
    if isinstance(result, Tensor):
        return lambda: result.copy_(ask())
    places = _tensors(result)
    return lambda: [place.copy_(new) for place, new in zip(places, _tensors(ask()), strict=True)]


def _tensors(values: Any) -> list[Tensor]:
    """Those among arguments or results, which may have lists of them."""
    if isinstance(values, Tensor):
        return [values]
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


def _is_view(result: Any, given: list[Tensor]) -> bool:
    """Whether a result stands in the memory of what it was made of: what is done there is done to it."""
    memory = {x.untyped_storage().data_ptr() for x in given}
    return any(x.untyped_storage().data_ptr() in memory for x in _tensors(result))
