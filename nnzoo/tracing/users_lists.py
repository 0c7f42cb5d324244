"""The lists that the user's code can name: its variables, what is in them, and attributes of objects."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from types import BuiltinMethodType, FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

from nnzoo.tracing.lines import users_variables
from nnzoo.tracing.tape import StepValues

LONG = 10_000  # what is longer is not looked into for lists in it
MANY = 50_000  # things that are looked at, in all
DEEP = 3  # lists in a list, those in them, and those in these
LIBRARIES = {"torch", "nnzoo", "transformers", "numpy", "builtins"}  # their objects hold no lists of the user's


def users_lists() -> list[list | defaultdict]:
    """The lists, and the dicts that make lists as they are asked for, around the line that called us."""
    found: list[list | defaultdict] = []
    seen: set[int] = set()
    for values, names in users_variables():
        for _ in range(DEEP + 1):
            new = {id(one): one for one in values if id(one) not in seen}
            seen.update(new)
            found += [one for one in new.values() if is_list(one) or isinstance(one, defaultdict)]
            values = []
            for one in new.values():
                if len(seen) + len(values) < MANY:
                    values += _parts(one, names)
    return found


def is_list(value: Any) -> bool:
    """Whether this is a list of the user's: not one that a value became because it was saved."""
    return isinstance(value, list) and not isinstance(value, StepValues)


def _parts(value: Any, names: frozenset[str]) -> list[Any]:
    """What stands in a list, a tuple or a dict, or in an object's attributes; of a module, those with such names."""
    kind = type(value)
    for base in (list, tuple, dict):
        if issubclass(kind, base):  # by the methods of the base: a class of its own may load what is asked for
            values = dict.values if base is dict else base.__iter__
            return [] if base.__len__(value) > LONG else [*values(value)]
    if kind in (BuiltinMethodType, MethodType):  # append = states.append
        return [value.__self__]
    if kind is FunctionType:
        return [*_closure(value)]
    if kind is ModuleType:
        return [vars(value)[name] for name in names & vars(value).keys()]
    if str((value if kind is type else kind).__module__).split(".")[0] in LIBRARIES:
        return []
    return [*(vars(value).values() if kind is type else _attributes(value))]


def _closure(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # nothing is in it yet
            yield cell.cell_contents


def _attributes(value: Any) -> Iterator[Any]:
    """An object's own, those in slots, and what its class has; no code of its own is run for them."""
    with suppress(Exception):  # it has none, or stands for something that is not there
        yield from object.__getattribute__(value, "__dict__").values()
    for kind in type(value).__mro__[:-1]:
        for one in [*vars(kind).values()]:
            if isinstance(one, MemberDescriptorType):
                with suppress(AttributeError):
                    yield one.__get__(value)
            elif isinstance(one, list | dict):
                yield one
