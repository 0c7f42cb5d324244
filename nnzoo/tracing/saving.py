"""`nnzoo.save`: keep values of a trace, whatever they are in."""

from typing import TypeVar, cast

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from nnzoo.tracing.lazy import LazyTensor

T = TypeVar("T")


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
    lazies = [one for one in tree_leaves(value) if isinstance(one, LazyTensor)]
    kept = {id(lazy): lazy.save() for lazy in lazies}
    if all(kept[id(lazy)] is lazy for lazy in lazies):
        return value
    return cast(T, tree_map(lambda one: kept.get(id(one), one), value))


# of a real tensor too: in a session, values of the traces before are plain tensors, and programs save what they make
setattr(Tensor, "save", save)  # noqa: B010  # mypy knows no other methods of it
