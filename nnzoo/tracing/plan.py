"""From what is asked to what must run: the nodes that count, in which pass of which prompts, at which stage."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from nnzoo.tracing.graph import AFTER, Invoke, Node, Stage
from nnzoo.tracing.pass_order import PassOrder


@dataclass(eq=False)
class Pass:
    """One run of the model over some prompts: what is to be done at each of its stages."""

    invokes: list[Invoke]
    stages: dict[Stage, list[Node]] = field(default_factory=dict)


@dataclass(eq=False)
class Plan:
    """What must run to give some roots."""

    nodes: list[Node]
    before: list[Node]  # those that need no pass
    passes: list[Pass]


def plan(roots: Iterable[Node], puts: Iterable[Node], order: PassOrder, done: set[Node], max_batch: int | None) -> Plan:
    """What must run to give the roots; nodes that are `done` have their values already."""
    nodes = needed(roots, puts, done)
    invokes = sorted({i for node in nodes for i in node.needs}, key=lambda i: i.index)
    groups = order.passes(invokes)
    if max_batch is not None:
        groups = [part for group in groups for part in order.together(group, max_batch)]
    passes = [Pass(group) for group in groups]
    number = {invoke: n for n, group in enumerate(groups) for invoke in group}
    before: list[Node] = []
    for node in nodes:
        if node in done:
            continue
        if not node.needs:
            before.append(node)
            continue
        n, stage = max((number[invoke], stage) for invoke, stage in node.needs.items())
        passes[n].stages.setdefault(stage, []).append(node)
    for one in passes:
        if AFTER in one.stages:
            one.stages[AFTER] = sources_first(one.stages[AFTER])
    return Plan(nodes, before, passes)


def needed(roots: Iterable[Node], puts: Iterable[Node], done: set[Node]) -> list[Node]:
    """The nodes that must run to give the roots, in program order.

    Everything that changes a place counts whose stage its pass goes through on the way to what is needed of it.
    """
    found: set[Node] = set()
    last: dict[Invoke, Stage] = {}
    for root in roots:
        _collect(root, found, last, done)
        for write in root.storage.writes:  # the tensor that comes back shows every edit of its memory
            _collect(write, found, last, done)
    waiting = [node for node in puts if node not in found]
    more = True
    while more:
        more = False
        for node in waiting:
            if node not in found and any(i in last and stage <= last[i] for i, stage in node.needs.items()):
                _collect(node, found, last, done)
                more = True
    return sorted(found, key=lambda node: node.index)


def _collect(root: Node, found: set[Node], last: dict[Invoke, Stage], done: set[Node]) -> None:
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
