"""Autograd graphs that a backward pass has used up: a second one through them is the error that it is in PyTorch.

Prompts of a batch share one graph, and gradients that come later need it: it is kept for them, and what PyTorch would
have freed, had the prompt run alone, is written down here.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from nnzoo.tracing.graph import Invoke

_SAID = (
    "Trying to backward through the graph a second time (or directly access saved tensors after they have already been "
    "freed). Saved intermediate values of the graph are freed when you call .backward() or autograd.grad(). Specify "
    "retain_graph=True if you need to backward through the graph a second time or if you need to access saved tensors "
    "after calling backward."
)  # PyTorch's words


class FreedGraphs:
    """What the backward passes of a run have used up."""

    def __init__(self) -> None:
        self._by: dict[Any, set[frozenset[Invoke]]] = {}  # nodes of autograd's graph, and of whose losses

    def go_through(self, loss: Tensor, invokes: Iterable[Invoke], *, frees: bool) -> None:
        """A backward pass of a loss of these prompts. Raises RuntimeError where another of theirs has been."""
        whose = frozenset(invokes)
        for node in _graph(loss):
            if whose in self._by.get(node, ()) and _has_saved(node):
                raise RuntimeError(_SAID)
            if frees:
                self._by.setdefault(node, set()).add(whose)


def _graph(loss: Tensor) -> Iterator[Any]:
    waiting: list[Any] = [loss.grad_fn]
    seen: set[Any] = {None}
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            yield node
            waiting += [following for following, _ in node.next_functions]


def _has_saved(node: Any) -> bool:
    """Whether it keeps tensors for its backward."""
    return any(name.startswith("_raw_saved_") and getattr(node, name) for name in dir(node))
