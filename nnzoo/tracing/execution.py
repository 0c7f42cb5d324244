"""Execution: the graph of a trace run on the model, in part for a look, as a whole when the body is over.

A pass that stopped for a look goes on from the block that it stopped in, unless what was recorded since lies below.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nnzoo.generation import Decoder
from nnzoo.tracing.gradients import Backward
from nnzoo.tracing.graph import Call, Given, Invoke, Node, Put, Stage
from nnzoo.tracing.modes import restored
from nnzoo.tracing.plan import Plan, plan
from nnzoo.tracing.recorder import Recorder
from nnzoo.tracing.run import Run
from nnzoo.tracing.shapes import Shapes
from nnzoo.tracing.walk import Walk

if TYPE_CHECKING:
    from nnzoo.tracing.traced import TracedModel


@dataclass
class Stopped:
    """A pass that stopped for a look, with the values it has given."""

    run: Run
    walk: Walk


class Execution:
    """Runs the graph of one trace."""

    def __init__(self, model: "TracedModel", shapes: Shapes, max_batch: int | None) -> None:
        self._model, self._shapes, self._max_batch = model, shapes, max_batch
        self._stopped: Stopped | None = None
        self.new_run: Callable[[], Run] = Run  # a server has one that keeps watch
        self.decoders: dict[Invoke, Decoder] = {}  # as the last pass left them

    def look(self, recorder: Recorder, roots: list[Node]) -> dict[Node, Any]:
        """The values of some nodes, of a pass that may go on later."""
        alive = [lazy._node for ref in recorder.alive if (lazy := ref()) is not None]
        near = [node for node in alive if _within(node, roots)]  # they will be asked for, and a pass is there already
        try:
            return self._look(recorder, roots, near)
        except Exception:
            if set(near) <= set(roots):
                raise
        return self._look(recorder, roots, [])  # the error of a neighbour comes when that one is asked for

    def _look(self, recorder: Recorder, roots: list[Node], near: list[Node]) -> dict[Node, Any]:
        with self._ready(recorder), _nothing_changed(recorder, self._model._model):
            return self._run(recorder, roots, near)

    def finish(self, recorder: Recorder, roots: list[Node], *, carries_graph: bool) -> dict[Node, Any]:
        """The values of all that is held, when the body is over, and every backward pass."""
        with self._ready(recorder):
            values = self._run(recorder, roots, recorder.effects, carries_graph=carries_graph)
        self._stopped = None
        return values

    @contextmanager
    def _ready(self, recorder: Recorder) -> Iterator[None]:
        grad = recorder.needs_grad and recorder.modes.grad
        with self._model.lock, restored(recorder.modes), torch.set_grad_enabled(grad):
            yield

    def _run(
        self, recorder: Recorder, roots: list[Node], near: list[Node], *, carries_graph: bool = False
    ) -> dict[Node, Any]:
        todo = self._going_on(recorder, [*roots, *near])
        stopped = self._stopped
        if todo is None or stopped is None:
            todo, stopped = plan([*roots, *near], recorder.puts, recorder.passes, set(), self._max_batch), None
        run = self.new_run() if stopped is None else stopped.run
        self._stopped = None
        run.carries_graph = carries_graph
        self._prepare(run, recorder, todo, [*roots, *near])
        run.run_all(todo.before)
        for one in todo.passes:
            walk = stopped.walk if stopped is not None else self._walk(one.invokes)
            walk.go(run, one.stages)
            self.decoders |= walk.decoders
        if len(todo.passes) == 1 and not recorder.needs_grad:
            self._stopped = Stopped(run, walk)
        return {root: run.values[root] for root in roots if root in run.values}

    def _walk(self, invokes: list) -> Walk:
        return Walk(self._model._model, invokes, self._model.order, self._shapes)

    def _prepare(self, run: Run, recorder: Recorder, todo: Plan, roots: list[Node]) -> None:
        run.expect(todo, roots)
        backward = [node for node in todo.nodes if isinstance(node, Backward)]
        run.differentiations = len(backward)
        run.carries_graph |= any(isinstance(node, Call) and node.fn is torch.autograd.grad for node in todo.nodes)
        run.differentiated |= recorder.differentiated
        if backward:  # `.grad` of what is kept is there afterwards
            run.differentiated |= {node for node in roots if node.meta is not None and node.meta.is_floating_point()}

    def _going_on(self, recorder: Recorder, roots: list[Node]) -> Plan | None:
        """What is left to do where a stopped pass can go on; None where it must begin again."""
        stopped = self._stopped
        if stopped is None or recorder.needs_grad:
            return None
        for boundary, layer in stopped.walk.boundaries:
            todo = self._going_on_from(boundary, stopped, recorder, roots)
            if todo is not None:
                stopped.walk.go_on_from(layer)
                return todo
        return None

    def _going_on_from(self, boundary: Stage, stopped: Stopped, recorder: Recorder, roots: list[Node]) -> Plan | None:
        run = stopped.run
        again = {node for node in run.done if any(stage >= boundary for stage in node.needs.values())}
        done = run.done - again
        todo = plan(roots, recorder.puts, recorder.passes, done, self._max_batch)
        fresh = [node for node in todo.nodes if node not in done]
        if not self._same_pass(todo, stopped) or not _can_stand(stopped, again, done, fresh, roots):
            return None
        early = [stage for one in todo.passes for stage in one.stages if stage < boundary]
        if any(_touches_the_pass(node) for one in todo.passes for stage in early for node in one.stages[stage]):
            return None
        run.done = done
        for one in todo.passes:
            for stage in sorted(early):
                todo.before += one.stages.pop(stage)
        return todo

    @staticmethod
    def _same_pass(todo: Plan, stopped: Stopped) -> bool:
        return all(one.invokes == stopped.walk.batch.invokes for one in todo.passes) and len(todo.passes) <= 1


def _within(node: Node, roots: Iterable[Node]) -> bool:
    """Whether a node is there when one of the roots is."""
    return any(
        all(invoke in root.needs and stage <= root.needs[invoke] for invoke, stage in node.needs.items())
        for root in roots
    )


def _can_stand(stopped: Stopped, again: set[Node], done: set[Node], fresh: list[Node], roots: list[Node]) -> bool:
    """Whether the values of a stopped pass are those that going on needs."""
    values, kept = stopped.run.values, {node.storage for node in done}
    if any(isinstance(node, Call) and node.changes for node in stopped.run.done):
        return False  # the look took back what they did
    if any(isinstance(node, Call) and node.writes and node.storage in kept for node in again):
        return False  # it would be written twice
    if any(root in done and root not in values for root in roots):
        return False
    used = [(node, one) for node in fresh for one in node.inputs if one in done]
    return all(one in values and not _written_since(node, one, done) for node, one in used)


def _written_since(reader: Node, operand: Node, done: set[Node]) -> bool:
    return any(write.index > reader.index and write in done for write in operand.storage.writes)


def _touches_the_pass(node: Node) -> bool:
    return isinstance(node, (Given, Put)) or (isinstance(node, Call) and node.writes and node.storage.place is not None)


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
