"""Lists that the body of a `with tracer.iter[...]` appends to: it runs once, and each step appends values of its own.

What nnsight's tutorials write:

    with tracer.all():
        states.append(model.transformer.h[1].output[0])
"""

import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from operator import is_
from typing import Any

from nnzoo.envoys.outputs import Outputs
from nnzoo.tracing.lazy import LazyTensor
from nnzoo.tracing.lengths import Length
from nnzoo.tracing.tape import Player, StepValues
from nnzoo.tracing.users_lists import is_list, users_lists


class StepLists:
    """The lists that a body can name, as they are before it.

    `start` is the index of its first node.
    """

    def __init__(self, appended: "Appended", start: int) -> None:
        found = users_lists()
        self._appended, self._start = appended, start
        self._before = [(one, len(one), one[-1] if one else None) for one in found if isinstance(one, list)]
        self._keys = [(one, set(one)) for one in found if isinstance(one, dict)]
        self._known = frozenset(map(id, found))
        self._added: list[tuple[list, list]] = []

    def end_first(self) -> None:
        """The body has run, for the first step."""
        made = [(one, 0, None) for one in _made(self._keys, set(self._known))]
        for one, before, last in [*self._before, *made]:
            if before and (len(one) < before or one[before - 1] is not last):
                self._warn_of_changed(one)
                continue
            new = one[before:]
            if next(_held(new), None) is not None:
                one[before:] = [_mapped(x, lambda value: value, int, self._known) for x in new]
                self._added.append((one, new))
                self._appended.add(one, one[before:])

    def step(self, player: Player) -> None:
        """Append what a further step has in the place of the first one's values."""

        def value(first: LazyTensor) -> LazyTensor:
            return player.value(first._node)

        for one, new in self._added:
            values = [_mapped(x, value, lambda size: size.now(player.new), self._known) for x in new]
            one.extend(values)
            self._appended.add(one, values)

    def _warn_of_changed(self, one: list) -> None:
        if any(isinstance(value, LazyTensor) and value._node.index >= self._start for value in _held(one)):
            warnings.warn(
                "the body of this `with` runs once for several steps; to a list it appends at each of them, but here "
                "it has changed a list otherwise, which has the first step's values: write `for step in "
                "tracer.iter[...]:`, whose body runs step by step",
                stacklevel=4,
            )


class Appended:
    """The lists of a trace that have values of several steps, and which these are: the text may end before."""

    def __init__(self) -> None:
        self._groups: dict[int, tuple[list, list[list[int]]]] = {}  # by a list's id: the ids of what each step appended

    def add(self, one: list, values: list) -> None:
        """A step has appended values."""
        self._groups.setdefault(id(one), (one, []))[1].append([*map(id, values)])

    def let_go(self) -> None:
        """Forget the lists that nobody else has: nobody asks for their values."""
        self._groups = {key: pair for key, pair in self._groups.items() if sys.getrefcount(pair[0]) > 2}

    def drop_steps_not_made(self, recorder: Any) -> None:
        """Take out what belongs to steps that the generation did not come to."""
        for one, groups in self._groups.values():
            never = {id(x) for x in one if any(getattr(value, "_recorder", None) is recorder for value in _held(x))}
            for group in reversed(groups):
                if not never.isdisjoint(group):
                    _take_out(one, group)
        self._groups = {}


def _take_out(one: list, group: list[int]) -> None:
    """Remove what a step has appended, where it still stands together."""
    for start in range(len(one) - len(group), -1, -1):
        if [*map(id, one[start : start + len(group)])] == group:
            del one[start : start + len(group)]
            return


def _made(keys: Iterable[tuple[dict, set]], known: set[int]) -> Iterator[list]:
    """The lists that dicts have made, since they had these keys; those that dicts which they made have, too."""
    for one, before in keys:
        new = [value for key, value in one.items() if key not in before and id(value) not in known]
        for value in {id(value): value for value in new}.values():
            known.add(id(value))
            if isinstance(value, defaultdict):
                yield from _made([(value, set())], known)
            elif is_list(value):
                yield value


def _held(nested: Any, inside: frozenset[int] = frozenset()) -> Iterator[Any]:
    """What is another one at each step, in lists, tuples and dicts: values of a trace, and sizes."""
    if isinstance(nested, LazyTensor | StepValues | Length):
        yield nested
    elif isinstance(nested, list | tuple | dict) and id(nested) not in inside:
        for part in [*nested.values()] if isinstance(nested, dict) else [*nested]:
            yield from _held(part, inside | {id(nested)})


def _mapped(
    nested: Any,
    value: Callable[[LazyTensor], LazyTensor],
    size: Callable[[Length], int],
    known: frozenset[int],
) -> Any:
    """The same with other values and sizes in their place; what has none stays itself, and so do the lists known."""
    if isinstance(nested, StepValues):
        return value(nested.first)
    if isinstance(nested, LazyTensor):
        return value(nested)
    if isinstance(nested, Length):
        return size(nested)
    if not isinstance(nested, list | tuple | dict) or id(nested) in known:
        return nested
    old = [*nested.values()] if isinstance(nested, dict) else [*nested]
    parts = [_mapped(part, value, size, known) for part in old]
    return nested if all(map(is_, old, parts)) else _like(nested, parts)


def _like(nested: Any, parts: list[Any]) -> Any:
    """A list, tuple or dict of the same kind with other parts."""
    if isinstance(nested, dict):
        other = copy(nested)
        other.update(zip(nested, parts, strict=True))
        return other
    if isinstance(nested, Outputs):
        return Outputs(nested._envoy, tuple(parts))
    return type(nested)(*parts) if hasattr(nested, "_fields") else type(nested)(parts)
