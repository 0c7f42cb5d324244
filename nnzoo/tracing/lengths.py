"""Sizes on a tape: a number that a recorded shape gave is another one when the tape is played for other tokens."""

import operator
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

SIZES = {"shape", "size", "numel", "nelement"}  # what tells sizes


class Length(int):
    """An int that knows how it was computed from recorded shapes.

    >>> size, key = Length(7), object()
    >>> size.keys, size.now = (key,), lambda sizes: sizes[key]
    >>> half = size // 2
    >>> half, half.now({key: 9})
    (3, 4)
    """

    keys: tuple[object, ...] = ()  # of the sizes that it was computed from
    now: Callable[[Mapping[Any, Any]], int]

    def __hash__(self) -> NoReturn:  # einops asks, and then computes without its memory
        raise TypeError("inside an edit or `with tracer.iter`, a size is another number each time; int(size) is one")

    __eq__ = int.__eq__


def tag(result: Any) -> tuple[Any, tuple[object, ...]]:
    """A shape, or a size, with lengths for its numbers; and their keys."""
    told: list[object] = []

    def length(number: int) -> Length:
        key = object()
        told.append(key)
        return _length(number, (key,), lambda sizes: sizes[key])

    tagged = type(result)(map(length, result)) if isinstance(result, tuple) else length(result)
    return tagged, tuple(told)


def numbers(result: Any) -> tuple[int, ...]:
    """The numbers of a shape, or of a size."""
    return tuple(result) if isinstance(result, tuple) else (result,)


def map_lengths(change: Callable[[Length], int], value: Any) -> Any:
    """The same nesting, with every length changed."""
    if isinstance(value, Length):
        return change(value)
    if isinstance(value, (tuple, list)):
        parts = [map_lengths(change, part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, dict):
        return {key: map_lengths(change, part) for key, part in value.items()}
    if isinstance(value, slice):
        return slice(*(map_lengths(change, part) for part in (value.start, value.stop, value.step)))
    return value


def keys(value: Any) -> tuple[object, ...]:
    """The keys of all sizes that lengths in a nesting were computed from."""
    found: list[object] = []

    def note(length: Length) -> Length:
        found.extend(length.keys)
        return length

    map_lengths(note, value)
    return tuple(found)


def _length(number: int, of: tuple[object, ...], now: Callable[[Mapping[Any, Any]], int]) -> Length:
    length = Length(number)
    length.keys, length.now = of, now
    return length


def _now(number: int, sizes: Mapping[Any, Any]) -> int:
    return number.now(sizes) if isinstance(number, Length) else number


def _keeping(op: Callable[[int, int], int], *, reflected: bool = False) -> Callable[[Length, Any], Any]:
    def compute(self: Length, other: Any) -> Any:
        if not isinstance(other, int) or isinstance(other, bool):
            return NotImplemented
        a, b = (other, self) if reflected else (self, other)
        of = (*self.keys, *getattr(other, "keys", ()))
        return _length(op(int(a), int(b)), of, lambda sizes: op(_now(a, sizes), _now(b, sizes)))

    return compute


for _name in ("add", "sub", "mul", "floordiv", "mod"):
    setattr(Length, f"__{_name}__", _keeping(getattr(operator, _name)))
    setattr(Length, f"__r{_name}__", _keeping(getattr(operator, _name), reflected=True))
Length.__neg__ = lambda self: self * -1  # type: ignore[method-assign]
