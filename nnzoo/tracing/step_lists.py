"""Lists that the body of a `with tracer.iter[...]` appends to: it runs once, and each step appends values of its own.

with tracer.all():
    states.append(model.transformer.h[1].output[0])
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

from nnzoo.tracing.graph import Node
from nnzoo.tracing.lazy import LazyTensor
from nnzoo.tracing.lines import named_by_user
from nnzoo.tracing.tape import StepValues

LONG = 10_000  # what is longer is not looked into for lists in it
DEEP = 2  # lists in a list, and those in them, are looked at


class StepLists:
    """The lists that a body can name, as they are before it."""

    def __init__(self) -> None:
        found = {id(one): one for value in named_by_user() for one in _lists(value, DEEP)}.values()
        self._before = [(one, len(one)) for one in found if isinstance(one, list)]
        self._keys = [(one, set(one)) for one in found if isinstance(one, dict)]
        self._added: list[tuple[list, list]] = []

    def end_first(self) -> None:
        """The body has run, for the first step."""
        made = [one[key] for one, keys in self._keys for key in one if key not in keys and isinstance(one[key], list)]
        for one, before in [*self._before, *((one, 0) for one in made)]:
            new = one[before:]
            if _holds_values(new):
                one[before:] = _mapped(new, lambda value: value)
                self._added.append((one, new))

    def step(self, value: Callable[[Node], LazyTensor]) -> None:
        """Append what a further step has in the place of the first one's values."""
        for one, new in self._added:
            one.extend(_mapped(new, lambda first: value(first._node)))


def _lists(value: Any, depth: int) -> Iterator[list | defaultdict]:
    """A value, if it is a list or what makes lists as they are asked for, and those in it."""
    if not isinstance(value, list | tuple | dict):
        return
    if type(value) is list or isinstance(value, defaultdict):
        yield value
    if depth and len(value) <= LONG:
        for part in tuple(value.values() if isinstance(value, dict) else value):
            yield from _lists(part, depth - 1)


def _holds_values(nested: Any) -> bool:
    """Whether there are values of a trace in lists, tuples and dicts."""
    if isinstance(nested, list | tuple | dict):
        return any(map(_holds_values, nested.values() if isinstance(nested, dict) else nested))
    return isinstance(nested, LazyTensor)


def _mapped(nested: Any, function: Callable[[LazyTensor], LazyTensor]) -> Any:
    """The same with other values in their place."""
    if isinstance(nested, StepValues):
        return function(nested.first)
    if isinstance(nested, LazyTensor):
        return function(nested)
    if isinstance(nested, dict):
        return {key: _mapped(part, function) for key, part in nested.items()}
    if isinstance(nested, list | tuple):
        parts = [_mapped(part, function) for part in nested]
        return parts if isinstance(nested, list) else tuple(parts)
    return nested
