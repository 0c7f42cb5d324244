"""Sizes on a tape: a number that a recorded shape gave is another one when the tape is played for other tokens."""

import operator
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

SIZES = {"shape", "size", "numel", "nelement"}  # what tells sizes
OPERATORS = {name: getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "mod")}


class Length(int):
    """An int that knows how it was computed from sizes: an operator of two ints, or the key of a size.

    >>> key = object()
    >>> half = Length.of(7, "size", key) // 2
    >>> half, half.now({key: 9})
    (3, 4)
    """

    op: str
    operands: tuple[Any, ...]

    @classmethod
    def of(cls, number: int, op: str, *operands: Any) -> "Length":
        length = cls(number)
        length.op, length.operands = op, operands
        return length

    @property
    def keys(self) -> tuple[object, ...]:
        """Of the sizes that it was computed from."""
        if self.op == "size":
            return self.operands
        return tuple(key for one in self.operands if isinstance(one, Length) for key in one.keys)

    def now(self, sizes: Mapping[Any, Any]) -> int:
        """The number, where sizes are others."""
        if self.op == "size":
            return sizes[self.operands[0]]
        return OPERATORS[self.op](*(one.now(sizes) if isinstance(one, Length) else one for one in self.operands))

    def __hash__(self) -> NoReturn:  # einops asks, and then computes without its memory
        raise TypeError("inside an edit or `with tracer.iter`, a size is another number each time; int(size) is one")

    __eq__ = int.__eq__

    def __neg__(self) -> "Length":
        return Length.of(-int(self), "mul", self, -1)


def _method(op: str, *, reflected: bool = False) -> Callable[[Length, Any], Any]:
    def compute(self: Length, other: Any) -> Any:
        if not isinstance(other, int) or isinstance(other, bool):
            return NotImplemented
        a, b = (other, self) if reflected else (self, other)
        return Length.of(OPERATORS[op](int(a), int(b)), op, a, b)

    return compute


for _op in OPERATORS:
    setattr(Length, f"__{_op}__", _method(_op))
    setattr(Length, f"__r{_op}__", _method(_op, reflected=True))


def tag(result: Any) -> tuple[Any, tuple[object, ...]]:
    """A shape, or a size, with lengths for its numbers; and their keys."""
    told = tuple(object() for _ in numbers(result))
    lengths = [Length.of(number, "size", key) for number, key in zip(numbers(result), told, strict=True)]
    return (type(result)(lengths) if isinstance(result, tuple) else lengths[0]), told


def numbers(result: Any) -> tuple[int, ...]:
    """The numbers of a shape, or of a size."""
    return tuple(result) if isinstance(result, tuple) else (result,)


def map_lengths(change: Callable[[Length], Any], value: Any) -> Any:
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
