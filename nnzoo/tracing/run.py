"""Running nodes: values appear in program order within a stage, are let go of when nobody needs them any more.

A `Run` knows nothing of the model; `walk.py` takes it through a pass.
"""

from collections import defaultdict, deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from nnzoo.tracing.blame import blame
from nnzoo.tracing.freed import FreedGraphs
from nnzoo.tracing.graph import Call, Given, Invoke, Node, Place, Put, Storage
from nnzoo.tracing.plan import Plan
from nnzoo.tracing.wholes import copy_part, stack_prompts


class Run:
    """The values of nodes that have run and are still needed."""

    def __init__(self) -> None:
        self.values: dict[Node, Any] = {}
        self.done: set[Node] = set()
        self.made: dict[Invoke, int] = {}  # the steps that a generation came to, where that was before what was asked
        self._uses: dict[Node, int] = defaultdict(int)
        self.needed: set[Node] = set()
        self.roots: set[Node] = set()
        self.differentiated: set[Node] = set()  # nodes whose gradient is asked for
        self.puts: dict[Place, Put] = {}  # places where another value is put
        self.edited: set[Place | None] = set()  # those whose memory is written
        self.differentiations = 0  # backward passes to come
        self.freed: FreedGraphs | None = None  # where there is more than one backward pass
        self.carries_graph = False  # values leave with their autograd graph

        self._waiting: dict[Storage, deque[Node]] = {}  # readers of edited memory, less those at the head that have run
        self._copies: dict[Node, tuple[int, Tensor]] = {}  # of values that are edited later, and of which version
        self._before_edit: dict[tuple[Node, Node], Tensor] = {}  # (reader, operand) -> the operand as it was

    def expect(self, plan: Plan, roots: Iterable[Node], alive: Iterable[Node] = ()) -> None:
        """Get ready to run a plan's nodes and to keep the roots, and of what has run what may be asked for again."""
        self.needed, self.roots = set(plan.nodes), set(roots)
        self.differentiated, self.edited, self.puts = set(), set(), {}
        self._waiting.clear()
        self._uses = uses = defaultdict(int, dict.fromkeys(self.roots, 1))
        for node in plan.changes:
            if isinstance(node, Put):
                self.puts[node.place] = node
                uses[node] += 1
        for node in plan.nodes:
            if node not in self.done:
                self._expect(node)
        for node in alive:
            uses[node] += node in self.done
        if self.values:
            self.values = {node: value for node, value in self.values.items() if uses[node]}

    def _expect(self, node: Node) -> None:
        for one in node.inputs:
            self._uses[one] += 1
        self._uses[node] += node.is_taken
        self.differentiated.update(node.differentiates)
        if isinstance(node, Call) and node.writes:
            self.edited.add(node.storage.place)

    @property
    def keeps_graph(self) -> bool:
        """Whether a backward pass must leave the graph to others."""
        return self.carries_graph or self.differentiations > 0

    def give(self, node: Node, value: Any) -> None:
        """A pass gives a value."""
        self.done.add(node)
        if node in self.differentiated and value.requires_grad:
            value.retain_grad()
        if self._uses[node]:
            self.values[node] = value

    def take(self, node: Node) -> Any:
        """A value that the model goes on with: one use less."""
        value = self.values[node]
        self._release(node)
        return value

    def run_all(self, nodes: Iterable[Node]) -> None:
        """Run nodes in the order given, but those that a pass gives, that have run, or that cannot be reached."""
        for node in nodes:
            if not isinstance(node, Given) and node not in self.done and self.is_reached(node):
                self.run(node)

    def is_reached(self, node: Node) -> bool:
        """Whether no generation ended before a step that the node needs; of a whole batch, not every one did."""
        if not self.made:
            return True
        if isinstance(node, (Given, Put)) and not self._is_made(node):
            return False
        there = [one in self.done for one in node.inputs]
        if not (any(there) if _is_stack(node) else all(there)):
            return False
        return all(write in self.done or self._is_of_ended(write) for write in node.after)

    def _is_made(self, node: Given | Put) -> bool:
        return all(stage.step < self.made.get(i, stage.step + 1) or stage.is_end for i, stage in node.needs.items())

    def _is_of_ended(self, write: Node) -> bool:
        """Whether it would copy a prompt's value, which is not there, into a whole."""
        return isinstance(write, Call) and write.fn is copy_part and not all(one in self.done for one in write.inputs)

    def run(self, node: Node) -> None:
        """Run one node. An error gets to know the line that recorded it, and its operands."""
        if isinstance(node, Call) and node.writes:
            self._keep_for_readers(node)
        try:
            node.run_in(self)
        except Exception as error:
            blame(error, node)
            raise
        for one in node.inputs:
            self._before_edit.pop((node, one), None)
            self._release(one)

    def _release(self, node: Node) -> None:
        self._uses[node] -= 1
        if not self._uses[node]:
            self.values.pop(node, None)
            self._copies.pop(node, None)

    def operand(self, reader: Node, node: Node) -> Any:
        """The value of a node as a reader must see it."""
        if node not in self.done and _is_stack(reader):  # of a prompt whose text has ended: padding
            return next(self.values[one] for one in reader.inputs if one in self.done).new_zeros(node.meta.shape)
        kept = self._before_edit.get((reader, node))  # an operand may stand there twice
        if kept is not None:
            return kept
        value = self.values[node]
        return self._apart(node, value) if _may_be_saved(reader, node, value) else value

    def _apart(self, node: Node, value: Tensor) -> Tensor:
        """A value that autograd may save for a backward pass, apart from memory that is yet to be edited."""
        version, copy = self._copies.get(node, (-1, value))
        if version != value._version:
            copy = value.clone()
            self._copies[node] = (value._version, copy)
        return copy

    def _keep_for_readers(self, edit: Call) -> None:
        """Readers recorded before an edit that run after it see what they would have seen."""
        copies: dict[Node, Tensor] = {}
        waiting = self._waiting.setdefault(edit.storage, deque(edit.storage.readers))
        while waiting and waiting[0] in self.done:
            waiting.popleft()
        for reader in waiting:
            if reader.index >= edit.index:
                break
            if reader in self.done or reader not in self.needed or isinstance(reader, Put):
                continue  # what is put shows every edit
            for node in reader.inputs:
                source = self._source_of(node)
                if node.storage is edit.storage and source in self.values and (reader, node) not in self._before_edit:
                    copies.setdefault(source, self.values[source].clone())
                    self._before_edit[reader, node] = copies[source]

    def _source_of(self, node: Node) -> Node:
        """Where the value of a node is now, which may be put at a place that the pass has not come to."""
        while isinstance(node, Put) and node not in self.done:
            (node,) = node.inputs
        return node


def _may_be_saved(reader: Node, node: Node, value: Any) -> bool:
    """Whether a backward pass may need a value as its reader saw it, when its memory has been edited since."""
    writes = node.storage.writes
    return (
        bool(writes)
        and writes[-1].index > reader.index
        and isinstance(reader, Call)
        and reader.storage is not node.storage  # a view stays one
        and not reader.differentiates
        and isinstance(value, Tensor)
        and not value.is_inference()
        and torch.is_grad_enabled()
    )


def _is_stack(node: Node) -> bool:
    return isinstance(node, Call) and node.fn is stack_prompts
