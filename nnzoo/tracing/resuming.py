"""Passes that stopped for a look go on, each from where it stands or from the block it is in, where nothing forbids it.

What was recorded since may lie below: then the pass goes back, and what it had given is computed again; so do passes
that went on with something of that. A pass that cannot go back far enough begins again.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from nnzoo.tracing.graph import AFTER, Call, Given, Invoke, Node, Put, Stage
from nnzoo.tracing.plan import Plan, plan
from nnzoo.tracing.recorder import Recorder
from nnzoo.tracing.run import Run
from nnzoo.tracing.schedule import START, Standing
from nnzoo.tracing.walk import Walk

_MANY = 10**4  # steps of a generation: as many as it comes to


@dataclass
class Resumption:
    """A plan for passes that go on."""

    run: Run
    plan: Plan
    starts: dict[Walk, Stage]  # after what each of them goes on
    done: set[Node]  # what need not run again

    @property
    def reached(self) -> dict[Invoke, Stage]:
        return {i: stage for walk, stage in self.starts.items() for i in walk.batch.invokes}

    def take_up(self) -> dict[Invoke, Walk]:
        """Let the passes go back to where they go on; they, by their prompts."""
        self.run.done = self.done
        self.run.made = {i: steps for i, steps in self.run.made.items() if i in self.reached}
        for walk, stage in self.starts.items():
            walk.go_back_to(stage)
        return {i: walk for walk in self.starts for i in walk.batch.invokes}


def resumption(
    run: Run, walks: Iterable[Walk], recorder: Recorder, asked: list[Node], max_batch: int | None
) -> Resumption | None:
    """How passes go on, as far as they can; None where all must begin again."""
    if any(isinstance(node, Call) and node.changes for node in run.done):
        return None  # a look took back what they did to real tensors
    boundaries = {walk: walk.boundaries for walk in walks}
    while boundaries:
        starts = {walk: stages[0] for walk, stages in boundaries.items()}
        trial = _Trial(run, recorder, starts)
        todo = plan(asked, recorder.puts, max_batch, trial.done, trial.standing)
        back = set(starts) if todo is None else trial.too_far(todo, asked)
        if todo is not None and not back:
            return Resumption(run, todo, starts, trial.done)
        for walk in back:
            boundaries[walk] = boundaries[walk][1:]
        boundaries = {walk: stages for walk, stages in boundaries.items() if stages}
    return None


def cost(todo: Plan, n_hooks: int, reached: dict[Invoke, Stage] | None = None) -> int:
    """How much of the model a plan runs, counted in hook points."""
    at = dict(reached or {})
    total = 0
    for one in todo.passes:
        start, end = at.get(one.invokes[0], Stage(0, 0)), max((s for s in one.stages if s != AFTER), default=START)
        total += (min(end.step, _MANY) - start.step) * n_hooks + end.order - start.order
        at |= dict.fromkeys(one.invokes, end)
    return total


class _Trial:
    """What passes have given that go on after certain stages."""

    def __init__(self, run: Run, recorder: Recorder, starts: dict[Walk, Stage]) -> None:
        self._run, self._puts, self._starts = run, set(recorder.puts), starts
        self._walks = {i: walk for walk in starts for i in walk.batch.invokes}
        self._reached = {i: starts[walk] for i, walk in self._walks.items()}
        self._again = {
            node for node in run.done if any(stage > self._reached.get(i, START) for i, stage in node.needs.items())
        }
        self.done = run.done - self._again
        self.standing = [Standing(walk.batch.invokes, stage) for walk, stage in starts.items()]

    def too_far(self, todo: Plan, asked: list[Node]) -> set[Walk]:
        """Passes that must go back, because what they have given or let go of is wanted otherwise."""
        kept = {node.storage for node in self.done}
        if any(isinstance(node, Call) and node.writes and node.storage in kept for node in self._again):
            return set(self._starts)  # it would be written twice
        back = {walk for node in self._again & self._puts for walk in self._left_behind(node)}
        back |= {walk for node in asked if node in self.done for walk in self._lost(node)}
        for node in todo.nodes:
            if node not in self.done:
                back |= self._left_behind(node)
                back |= {walk for one in node.inputs if one in self.done for walk in self._lost(one, node)}
        return back

    def _left_behind(self, node: Node) -> set[Walk]:
        """The pass that has left the place where a node would be given its value, or would change something."""
        if isinstance(node, Given):
            at = list(node.needs.items())
        elif node in self._puts and (place := node.storage.place) is not None:
            at = [(place.invoke, place.stage)]
        else:
            return set()
        return {self._walks[i] for i, stage in at if i in self._walks and not self._is_open(node, i, stage)}

    def _is_open(self, node: Node, invoke: Invoke, stage: Stage) -> bool:
        reached = self._reached[invoke]
        return stage > reached or (isinstance(node, Put) and self._walks[invoke].stands_at(stage) and stage == reached)

    def _lost(self, node: Node, reader: Node | None = None) -> set[Walk]:
        """Passes that have let go of a value, or of how it was when its reader should have seen it."""
        if node in self._run.values and (reader is None or not self._written_since(reader, node)):
            return set()
        return {self._walks[i] for i in node.needs if i in self._walks} or set(self._starts)

    def _written_since(self, reader: Node, operand: Node) -> bool:
        return any(write.index > reader.index and write in self.done for write in operand.storage.writes)
