"""From what is asked to what must run: the nodes that count, in which pass of which prompts, at which stage."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter

from nnzoo.tracing.graph import AFTER, BEYOND, Invoke, Node, Place, Stage, changed_by
from nnzoo.tracing.schedule import START, Leg, Standing, Tie, schedule

_INDEX = attrgetter("index")
BEFORE = -1  # the number of the pass that has been


@dataclass(eq=False)
class Pass:
    """One run of the model over some prompts, or a part of one: what is to be done at each of its stages.

    At the last one it may wait for other passes, which make what changes the place where it stands.
    """

    invokes: list[Invoke]
    stages: dict[Stage, list[Node]] = field(default_factory=dict)


@dataclass(eq=False)
class Plan:
    """What must run to give some roots."""

    nodes: list[Node]
    changes: list[Node]  # of them: what places hold when passes leave them
    before: list[Node]  # those that need no pass
    passes: list[Pass]


def plan(
    roots: Sequence[Node],
    puts: Iterable[Node],
    max_batch: int | None,
    done: frozenset[Node] | set[Node] = frozenset(),
    standing: Sequence[Standing] = (),
) -> Plan | None:
    """What must run to give the roots; nodes that are `done` have their values already.

    None: it cannot be had with passes standing where they do.
    """
    nodes, changes = needed(roots, puts, done)
    invokes = sorted({i for node in nodes for i in node.needs}, key=_INDEX)
    if len(invokes) <= 1 and not standing:
        return Plan(nodes, list(changes), *_one_pass(nodes, invokes))
    legs = schedule(invokes, _ties(changes), max_batch, [one for one in standing if _any_of(one, invokes)])
    if legs is None:
        return None
    if len(legs) == 1 and not standing:
        return Plan(nodes, list(changes), *_one_pass(nodes, legs[0].invokes))
    return Plan(nodes, list(changes), *_timetable([node for node in nodes if node not in done], legs, standing))


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


def _one_pass(nodes: list[Node], invokes: list[Invoke]) -> tuple[list[Node], list[Pass]]:
    """Nodes that come before the pass, and it, with each at the last stage that it needs."""
    before: list[Node] = []
    stages: dict[Stage, list[Node]] = {}
    for node in nodes:
        if node.needs:
            stages.setdefault(max(node.needs.values()), []).append(node)
        else:
            before.append(node)
    if AFTER in stages:
        stages[AFTER] = sources_first(stages[AFTER])
    return before, [Pass(invokes, stages)] if stages else []


def _timetable(nodes: list[Node], legs: list[Leg], standing: Sequence[Standing]) -> tuple[list[Node], list[Pass]]:
    """Nodes in the passes and at the stages where the last comes of what each of them needs; first those before all."""
    passes = [Pass(leg.invokes, {} if leg.until == BEYOND else {leg.until: []}) for leg in legs]
    parts: dict[Invoke, list[tuple[Stage, int]]] = {}  # of its pass, and how far each goes
    for number, (invokes, until) in [*((BEFORE, one) for one in standing), *enumerate(legs)]:
        for invoke in invokes:
            parts.setdefault(invoke, []).append((until, number))
    before: list[Node] = []
    for node in nodes:
        number, stage = _time(node, parts)
        if number == BEFORE or not node.needs:
            before.append(node)
        else:
            passes[number].stages.setdefault(stage, []).append(node)
    for one in passes:
        if AFTER in one.stages:
            one.stages[AFTER] = sources_first(one.stages[AFTER])
    return before, [one for one in passes if one.stages]


def _time(node: Node, parts: dict[Invoke, list[tuple[Stage, int]]]) -> tuple[int, Stage]:
    """The number of the pass, and the stage, that has all a node needs."""
    times = [
        (next(number for until, number in parts[invoke] if stage <= until), stage)
        for invoke, stage in node.needs.items()
    ]
    return max(times, default=(BEFORE, START))


def needed(
    roots: Sequence[Node], puts: Iterable[Node], done: frozenset[Node] | set[Node]
) -> tuple[list[Node], dict[Node, Place]]:
    """The nodes that must run to give the roots, in program order, and what places hold when passes leave them.

    Everything that changes a place counts whose stage its pass goes through on the way to what is needed of it.
    """
    found: set[Node] = set()
    last: dict[Invoke, Stage] = {}
    edits = [write for root in roots for write in root.storage.writes]  # the tensor that comes back shows every one
    _collect([*roots, *edits], found, last, done)
    changes = {node: place for node in puts if (place := changed_by(node)) is not None}
    more = bool(changes)
    while more:
        more = False
        for node, place in changes.items():
            if node not in found and place.stage <= last.get(place.invoke, START):
                _collect([node], found, last, done)
                more = True
    return sorted(found, key=_INDEX), {node: place for node, place in changes.items() if node in found}


def _collect(
    waiting: list[Node], found: set[Node], last: dict[Invoke, Stage], done: frozenset[Node] | set[Node]
) -> None:
    while waiting:
        node = waiting.pop()
        if node in found:
            continue
        found.add(node)
        for invoke, stage in node.needs.items():
            if stage > last.get(invoke, START):
                last[invoke] = stage
        if node not in done:
            waiting.extend(node.sources())


def sources_first(nodes: list[Node]) -> list[Node]:
    """In program order, but that a node whose source was recorded after it waits for that: `x.grad` may stand above
    `backward()`.
    """
    placed: list[Node] = []
    waiting, left, seen = nodes[::-1], set(nodes), set[Node]()
    while waiting:
        node = waiting[-1]
        if node not in seen:
            seen.add(node)
            waiting += [one for one in reversed(node.inputs + node.after) if one in left and one not in seen]
        else:
            waiting.pop()
            if node in left:
                placed.append(node)
                left.remove(node)
    return placed
