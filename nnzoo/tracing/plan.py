"""From what is asked to what must run: the nodes that count, in which pass of which prompts, at which stage."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from nnzoo.tracing.graph import AFTER, BEYOND, Invoke, Node, Place, Stage, changed_by
from nnzoo.tracing.schedule import START, Leg, Standing, Tie, schedule

BEFORE = -1  # the number of the pass that has been


@dataclass(eq=False)
class Pass:
    """One run of the model over some prompts, or a part of one: what is to be done at each of its stages.

    At the last one it may wait for other passes, which make what changes the place where it stands.
    """

    invokes: list[Invoke]
    stages: dict[Stage, list[Node]] = field(default_factory=dict)
    part: int = 0  # of the run of the model


@dataclass(eq=False)
class Plan:
    """What must run to give some roots."""

    nodes: list[Node]
    changes: list[Node]  # of them: what places hold when passes leave them
    before: list[Node]  # those that need no pass
    passes: list[Pass]


def plan(
    roots: Iterable[Node],
    puts: Iterable[Node],
    max_batch: int | None,
    done: frozenset[Node] | set[Node] = frozenset(),
    standing: Sequence[Standing] = (),
) -> Plan | None:
    """What must run to give the roots; nodes that are `done` have their values already.

    None: it cannot be had with passes standing where they do.
    """
    nodes, changes = needed(roots, puts, done)
    invokes = sorted({i for node in nodes for i in node.needs}, key=lambda i: i.index)
    fresh = [node for node in nodes if node not in done] if done else nodes
    if len(invokes) <= 1 and not standing:
        legs: list[Leg] | None = [Leg(invokes, BEYOND)] if invokes else []
    else:
        legs = schedule(invokes, _ties(changes), max_batch, [one for one in standing if _any_of(one, invokes)])
    if legs is None:
        return None
    timetable = _Timetable(legs, standing)
    before = [node for node in fresh if not timetable.place(node)]
    return Plan(nodes, list(changes), before, timetable.passes())


def _any_of(standing: Standing, invokes: list[Invoke]) -> bool:
    return any(i in invokes for i in standing.invokes)


def _ties(changes: dict[Node, Place]) -> set[Tie]:
    """What changes of places say of the order of passes."""
    ties = set()
    for node, place in changes.items():
        for invoke, stage in node.needs.items():
            if invoke is not place.invoke:
                ties.add(Tie(invoke, stage, place.invoke, place.stage))
    return ties


class _Timetable:
    """Which node runs in which part of which pass."""

    def __init__(self, legs: list[Leg], standing: Sequence[Standing]) -> None:
        self._passes = [Pass(leg.invokes, {leg.until: []} if leg.until != BEYOND else {}) for leg in legs]
        self._numbers: dict[Invoke, list[tuple[Stage, int]]] = {}  # the parts of its pass, and how far each goes
        for n, (invokes, until) in [*((BEFORE, one) for one in standing), *enumerate(legs)]:
            for invoke in invokes:
                self._numbers.setdefault(invoke, []).append((until, n))

    def place(self, node: Node) -> bool:
        """Put a node where the last of what it needs comes; False: before all passes."""
        needs = node.needs
        if not needs:
            return False
        number, stage = max([(self._number(invoke, stage), stage) for invoke, stage in needs.items()])
        if number == BEFORE:
            return False
        self._passes[number].stages.setdefault(stage, []).append(node)
        return True

    def _number(self, invoke: Invoke, stage: Stage) -> int:
        parts = self._numbers[invoke]
        return next(n for until, n in parts if stage <= until) if len(parts) > 1 else parts[0][1]

    def passes(self) -> list[Pass]:
        """Those in which something is to be done."""
        parts: dict[Invoke, int] = {}
        for one in self._passes:
            one.part = parts[one.invokes[0]] = parts.get(one.invokes[0], -1) + 1
            if AFTER in one.stages:
                one.stages[AFTER] = sources_first(one.stages[AFTER])
        return [one for one in self._passes if one.stages]


def needed(
    roots: Iterable[Node], puts: Iterable[Node], done: frozenset[Node] | set[Node]
) -> tuple[list[Node], dict[Node, Place]]:
    """The nodes that must run to give the roots, in program order, and what places hold when passes leave them.

    Everything that changes a place counts whose stage its pass goes through on the way to what is needed of it.
    """
    found: set[Node] = set()
    last: dict[Invoke, Stage] = {}
    for root in roots:
        _collect(root, found, last, done)
        for write in root.storage.writes:  # the tensor that comes back shows every edit of its memory
            _collect(write, found, last, done)
    changes = {node: place for node in puts if (place := changed_by(node)) is not None}
    more = True
    while more:
        more = False
        for node, place in changes.items():
            if node not in found and place.stage <= last.get(place.invoke, START):
                _collect(node, found, last, done)
                more = True
    return sorted(found, key=lambda node: node.index), {node: changes[node] for node in changes if node in found}


def _collect(root: Node, found: set[Node], last: dict[Invoke, Stage], done: frozenset[Node] | set[Node]) -> None:
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if node in found:
            continue
        found.add(node)
        for invoke, stage in node.needs.items():
            last[invoke] = max(stage, last.get(invoke, stage))
        if node not in done:
            waiting.extend(node.sources())


def sources_first(nodes: list[Node]) -> list[Node]:
    """In program order, but that a node whose source was recorded after it waits for that: `x.grad` may stand above
    `backward()`.
    """
    placed: dict[Node, None] = {}
    here = set(nodes)

    def place(node: Node) -> None:
        if node in placed or node not in here:
            return
        here.discard(node)
        for source in node.inputs + node.after:
            place(source)
        placed[node] = None

    for node in nodes:
        place(node)
    return list(placed)
