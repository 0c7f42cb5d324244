"""`nnzoo.save`: keep values of a trace, whatever they are in; and `.save()`, by which programs say the same."""

import ctypes
import gc
from contextlib import suppress
from typing import Any, TypeVar, cast
from weakref import WeakSet

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from nnzoo.tracing.lazy import LazyTensor

T = TypeVar("T")
BUILT_IN = (list, dict, tuple, set, int, float, str)

_heeding: WeakSet[Any] = WeakSet()


def save(value: T) -> T:
    """Keep a value of a trace, and every value in a nesting of lists, tuples and dicts; gives it back.

    What is no value of a trace, a number or an empty list to be filled, is given back as it is. Inside a
    `with tracer.iter[...]` over several steps every value becomes a list with one tensor a step.

    >>> import nnzoo
    >>> model = nnzoo.LanguageModel("nnzoo/tiny-gpt2")
    >>> with model.trace("The capital of France is"):
    ...     streams = nnzoo.save([block.output[0] for block in model.transformer.h])
    >>> len(streams), streams[0].shape[1]
    (4, 5)
    """
    if isinstance(value, (list, dict)):
        for recorder in _heeding:
            recorder.containers.append(value)
    lazies = [one for one in tree_leaves(value) if isinstance(one, LazyTensor)]
    kept = {id(lazy): lazy.save() for lazy in lazies}
    if all(kept[id(lazy)] is lazy for lazy in lazies):
        return value
    return cast(T, tree_map(lambda one: kept.get(id(one), one), value))


def heed(recorder: Any) -> None:
    """From here on lists and dicts that are saved are kept in `recorder.containers`, however they will be filled."""
    recorder.containers = []
    _heeding.add(recorder)


def save_what_is_in(recorder: Any) -> None:
    """Save a recorder's values in the lists and dicts that it has heeded; it heeds no more."""
    _heeding.discard(recorder)
    for one in tree_leaves(recorder.containers):
        if isinstance(one, LazyTensor) and one._recorder is recorder:
            recorder.saved.add(one._node)
    recorder.containers = []


def mount() -> None:
    """Give real tensors, lists, numbers and the like a `.save()`, as nnsight does: `list().save()` in a body.

    >>> mount()
    >>> [1].save(), (2).save()
    ([1], 2)
    """
    if "save" in vars(Tensor):
        return
    setattr(Tensor, "save", _method)  # noqa: B010  # mypy knows no other methods of it
    for kind in BUILT_IN:
        (names,) = gc.get_referents(kind.__dict__)  # Python's own types take no new attribute
        names.setdefault("save", _method)
        ctypes.pythonapi.PyType_Modified(ctypes.py_object(kind))


def _method(value: T) -> T:
    """`value.save()`, for nnsight too, which gives one to every object: in the body of its trace it hears of it."""
    theirs = vars(object).get("save")
    if theirs is not None:
        with suppress(ValueError):  # no trace of nnsight's is running
            theirs(value)
    return save(value)
