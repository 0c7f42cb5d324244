"""A stand-in for a CUDA graph: what it records it repeats operation by operation, and nothing of Python in between."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from nnzoo.generation.cuda_graphs import RECORDERS, Recording

aten = torch.ops.aten
WAITS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default, aten.is_nonzero.default}
FROM_THE_HOST = {aten.lift_fresh.default}  # a tensor of Python's numbers


class Tape(TorchDispatchMode):
    """The operations of a piece of work, with the tensors that they had, and the numbers.

    >>> x = torch.zeros(1)
    >>> with Tape() as tape:
    ...     y = x + 1
    >>> _ = x.fill_(5)
    >>> tape.replay()
    >>> y
    tensor([6.])
    """

    made = 0  # recordings, by all of them
    replays = 0

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Callable, tuple, dict, Any]] = []

    def __torch_dispatch__(self, fn: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if fn in WAITS or fn in FROM_THE_HOST:
            raise RuntimeError(f"operation not permitted when stream is capturing: {fn}")
        out = fn(*args, **(kwargs or {}))
        self.steps.append((fn, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        """Do it all again, where it was done."""
        Tape.replays += 1
        for fn, args, kwargs, out in self.steps:
            again = fn(*args, **kwargs)
            for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


def record(work: Callable[[], Tensor]) -> Recording:
    """As `CudaGraphs`, without warming up."""
    Tape.made += 1
    with Tape() as tape:
        output = work()
    return tape.replay, output


@contextmanager
def taped() -> Iterator[type[Tape]]:
    """Inside the `with` the CPU records steps, and counts; a warning that this has failed is an error."""
    Tape.made = Tape.replays = 0
    with patch.dict(RECORDERS, {"cpu": lambda device: record}), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield Tape
