"""Keeping watch over a run: how far it has come, when its time is up, and that it edits no weight."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from threading import get_ident
from typing import Any

from torch import Tensor

from nnzoo.architectures.hooks import HookPoint, Listener
from nnzoo.remote.guards import check_numbers, guarded
from nnzoo.remote.limits import Limits
from nnzoo.tracing.functions import GraphError
from nnzoo.tracing.graph import Call, Line, Node, fill
from nnzoo.tracing.run import Run


@dataclass(frozen=True)
class Progress:
    """How far a run has come: the block that it is in, and the token that it makes, both from 0."""

    layer: int | None
    n_layers: int
    token: int | None
    n_tokens: int | None


class Watch:
    """Watches one run on a model.

    `line` is that of the node which runs, or which failed.
    """

    def __init__(self, model: Any, limits: Limits, reached: Callable[[int, int], None]) -> None:
        self._model, self._limits, self._reached = model, limits, reached
        self._until = time.monotonic() + limits.seconds
        self._step = -1
        self._weights: set[int] | None = None
        self.line: Line | None = None
        self.run: Run | None = None

    def check_time(self) -> None:
        """Raise TimeoutError when time is up."""
        if time.monotonic() > self._until:
            raise TimeoutError(
                f"it has run for {self._limits.seconds:g} s, which is the limit `seconds`; whoever hosts the model "
                "sets it"
            )

    def check_edit(self, node: Call, value: Any) -> None:
        """Raise GraphError where a call is about to change a weight, however its memory came to be had."""
        if self._weights is None:
            weights = (*self._model.parameters(), *self._model.buffers())
            self._weights = {weight.untyped_storage().data_ptr() for weight in weights}
        if isinstance(value, Tensor) and value.untyped_storage().data_ptr() in self._weights:
            raise GraphError(f"{node} edits a weight of the model")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside the `with`, every block that a pass comes to is seen."""
        points = [self._model.hook_points[f"blocks.{layer}.hook_resid_pre"] for layer in range(self._n_layers)]
        handles = [point.attach(_Passing(self._pass, self)) for point in points]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @property
    def _n_layers(self) -> int:
        return len(self._model.blocks)

    def _pass(self, layer: int, n_pos: int) -> None:
        self.check_time()
        if layer == 0:
            self._step = 0 if n_pos > 1 else self._step + 1
        self._reached(layer, max(self._step, 0))


class _Passing(Listener):
    def __init__(self, passed: Callable[[int, int], None], watch: Watch) -> None:
        super().__init__(fn=passed)
        self._thread = get_ident()

    def fire(self, value: Tensor, point: HookPoint) -> Tensor:
        if get_ident() == self._thread:
            self.fn(point.layer(), value.shape[1])
        return value


class WatchedRun(Run):
    """A run that is watched node by node."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self._watch, watch.run = watch, self

    def run(self, node: Node) -> None:
        """Run one node."""
        watch = self._watch
        watch.check_time()
        before, watch.line = watch.line, node.line
        if isinstance(node, Call) and guarded(node.fn):
            check_numbers(node.fn, *(fill(one, partial(self.operand, node)) for one in (node.args, node.kwargs)))
        if isinstance(node, Call) and node.writes:
            for one in node.inputs:
                if one.storage is node.storage:
                    watch.check_edit(node, self.operand(node, one))
        super().run(node)
        watch.line = before  # of the backward pass in whose body it stands, or none
