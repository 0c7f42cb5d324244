"""Execution: the graph of a trace run on the model, in part for a look, as a whole when the body is over.

Passes that stopped for a look go on from where they stand, unless what was recorded since lies below.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nnzoo.generation import Decoder
from nnzoo.tracing.gradients import Backward
from nnzoo.tracing.graph import Call, Invoke, Node
from nnzoo.tracing.modes import graded, restored
from nnzoo.tracing.plan import Plan, plan
from nnzoo.tracing.recorder import Recorder
from nnzoo.tracing.resuming import cost, resumption
from nnzoo.tracing.run import Run
from nnzoo.tracing.shapes import Shapes
from nnzoo.tracing.walk import Walk

if TYPE_CHECKING:
    from nnzoo.tracing.traced import TracedModel


class Execution:
    """Runs the graph of one trace."""

    def __init__(self, model: "TracedModel", shapes: Shapes, max_batch: int | None) -> None:
        self._model, self._shapes, self._max_batch = model, shapes, max_batch
        self._values: Run | None = None  # what they have given
        self._walks: dict[Invoke, Walk] = {}  # passes that stopped for a look
        self.new_run: Callable[[], Run] = Run  # a server has one that keeps watch
        self.decoders: dict[Invoke, Decoder] = {}  # as the last pass left them

    def look(self, recorder: Recorder, roots: list[Node]) -> dict[Node, Any]:
        """The values of some nodes, of a pass that may go on later."""
        alive = [lazy._node for ref in recorder.alive if (lazy := ref()) is not None]
        near = [node for node in alive if _within(node, roots)]  # they will be asked for, and a pass is there already
        try:
            return self._look(recorder, roots, near, alive)
        except Exception:
            if set(near) <= set(roots):
                raise
        return self._look(recorder, roots, [], alive)  # the error of a neighbour comes when that one is asked for

    def _look(self, recorder: Recorder, roots: list[Node], near: list[Node], alive: list[Node]) -> dict[Node, Any]:
        with self._model.lock, _nothing_changed(recorder, self._model._model):
            run, walks = self._run(recorder, [*roots, *near], alive)
        if not recorder.needs_grad:
            self._values, self._walks = run, walks
        return _found(run, roots)

    def finish(self, recorder: Recorder, roots: list[Node], *, carries_graph: bool) -> dict[Node, Any]:
        """The values of all that is held, when the body is over, and every backward pass."""
        run, _ = self._run(recorder, [*roots, *recorder.effects], [], carries_graph=carries_graph)
        return _found(run, roots)

    def _run(
        self, recorder: Recorder, asked: list[Node], alive: list[Node], *, carries_graph: bool = False
    ) -> tuple[Run, dict[Invoke, Walk]]:
        modes = recorder.modes
        with self._model.lock, restored(modes), graded(recorder.needs_grad and modes.grad):
            todo, run, walks = self._plan(recorder, asked)
            self._values, self._walks = None, {}  # what an error leaves behind is of no use
            run.carries_graph = carries_graph
            run.expect(todo, asked, alive)
            if recorder.needs_grad:
                _expect_gradients(run, recorder, todo, asked)
            self._go(run, todo, walks)
        return run, walks

    def _go(self, run: Run, todo: Plan, walks: dict[Invoke, Walk]) -> None:
        model = self._model
        run.run_all(todo.before)
        for one in todo.passes:
            walk = walks.get(one.invokes[0]) or Walk(model._model, one.invokes, self._shapes)
            walks |= dict.fromkeys(one.invokes, walk)
            walk.go(run, one)
            self.decoders |= walk.decoders

    def _plan(self, recorder: Recorder, asked: list[Node]) -> tuple[Plan, Run, dict[Invoke, Walk]]:
        """What is left to do for a run and its passes that stopped, or all of it anew where that is less."""
        going_on = None
        if self._values is not None and not recorder.needs_grad:
            walks = dict.fromkeys(self._walks.values())
            for walk in walks:
                walk.wait(self._values)
            going_on = resumption(self._values, walks, recorder, asked, self._max_batch)
        if going_on is None or len(going_on.plan.passes) > 1:
            anew, n_hooks = plan(asked, recorder.puts, self._max_batch), len(self._model.order)
            assert anew is not None, "a recorder refuses what no order of passes gives"
            if going_on is None or cost(anew, n_hooks) < cost(going_on.plan, n_hooks, going_on.reached):
                return anew, self.new_run(), {}
        return going_on.plan, going_on.run, going_on.take_up()


def _found(run: Run, roots: list[Node]) -> dict[Node, Any]:
    return {root: run.values[root] for root in roots if root in run.values}


def _expect_gradients(run: Run, recorder: Recorder, todo: Plan, roots: list[Node]) -> None:
    backward = [node for node in todo.nodes if isinstance(node, Backward)]
    run.differentiations = len(backward)
    run.carries_graph |= any(isinstance(node, Call) and node.fn is torch.autograd.grad for node in todo.nodes)
    run.differentiated |= recorder.differentiated
    if backward:  # `.grad` of what is kept is there afterwards
        run.differentiated |= {node for node in roots if node.meta is not None and node.meta.is_floating_point()}


def _within(node: Node, roots: Iterable[Node]) -> bool:
    """Whether a node is there when one of the roots is."""
    return any(
        all(invoke in root.needs and stage <= root.needs[invoke] for invoke, stage in node.needs.items())
        for root in roots
    )


@contextmanager
def _nothing_changed(recorder: Recorder, model: torch.nn.Module) -> Iterator[None]:
    """A look runs for itself: what it adds to the gradients of parameters, or does to real tensors, is taken back."""
    if not recorder.effects:
        yield
        return
    leaves: dict[int, Tensor] = {id(p): p for p in model.parameters()}
    calls = [node for node in recorder.nodes if isinstance(node, Call)]
    for node in calls:
        leaves |= {id(t): t for t, _ in node.versions if t.requires_grad and t.is_leaf}
    gradients = [(leaf, leaf.grad) for leaf in leaves.values()]
    numbers = [(t, t.detach().clone()) for t in {id(t): t for node in calls for t in node.changes}.values()]
    for leaf, _ in gradients:
        leaf.grad = None
    try:
        yield
    finally:
        for leaf, gradient in gradients:
            leaf.grad = gradient
        for t, before in numbers:
            t.data.copy_(before)  # without a mark that it was edited: it is as it was
