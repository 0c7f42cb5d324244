"""One pass of the model, with a graph's nodes run at the places where they belong.

Stations stand at the hook points that the nodes need. When the pass arrives at one, the value is handed to the graph,
every node of that stage runs in program order, and the model goes on with what stands there then. After the last
stage the pass is over: what lies above is never computed.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from threading import get_ident
from typing import Any

import torch
from torch import Tensor

from nnzoo.architectures.hooks import HookPoint, Listener
from nnzoo.tracing.graph import Arrive, Call, Node, Place, Put, Stage, needed


class Halt(Exception):
    """The pass has given all that was asked."""


class Run:
    """Values of a graph's nodes, as one pass computes them."""

    def __init__(self, roots: Iterable[Node], puts: Iterable[Node]) -> None:
        self.roots = list(roots)
        self.nodes = needed(self.roots, puts)
        self.values: dict[Node, Any] = {}
        self._stages: dict[Stage, list[Node]] = {}
        for node in self.nodes:
            self._stages.setdefault(node.stage, []).append(node)
        self._last = max(self._stages, default=None)
        self._done: set[Node] = set()
        self._needed = set(self.nodes)
        self._uses = Counter(one for node in self.nodes for one in node.inputs)
        self._uses.update(self.roots)
        self._uses.update(node for node in self.nodes if isinstance(node, Put))  # the model takes them
        self._before_edit: dict[tuple[Node, Node], Tensor] = {}  # (reader, operand) -> the operand as it was
        self._working = False

    def execute(self, points: dict[str, HookPoint], forward: Callable[[], Any]) -> dict[Node, Any]:
        """Run the model, and give the values of the roots."""
        places = {node.place for node in self.nodes if isinstance(node, (Arrive, Put))}
        handles = [points[place.hook].attach(Station(self.arrive, place)) for place in places]
        try:
            self._run_stage([node for node in self.nodes if node.stage.step < 0])
            if self._last is not None and self._last.step >= 0:
                forward()
        except Halt:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return {root: self.values[root] for root in self.roots}

    def arrive(self, place: Place, value: Tensor) -> Tensor:
        """The pass is at a place with a value; what it goes on with."""
        if self._working:
            return value  # a module called inside the body passes its hook points too
        nodes = self._stages.get(place.stage, [])
        if any(isinstance(node, Call) and node.writes and node.storage.place is place for node in nodes):
            value = value.clone(memory_format=torch.contiguous_format)  # nobody else's memory is edited
        if place.arrived is not None:
            self.values[place.arrived] = value
        self._run_stage([node for node in nodes if node is not place.arrived])
        puts = [node for node in nodes if isinstance(node, Put)]
        out = self.values[puts[-1]] if puts else value
        if place.stage == self._last:
            raise Halt
        return out

    def _run_stage(self, nodes: list[Node]) -> None:
        self._working = True
        try:
            for node in nodes:
                self._run_node(node)
        finally:
            self._working = False

    def _run_node(self, node: Node) -> None:
        if isinstance(node, Call) and node.writes:
            self._keep_for_readers(node)
        try:
            value = node.run(lambda one: self._operand(node, one))
        except Exception as error:
            if hasattr(error, "add_note"):
                error.add_note(f"recorded at {node.line}")
            raise
        self.values[node] = value
        self._done.add(node)
        for one in node.inputs:
            self._before_edit.pop((node, one), None)
            self._uses[one] -= 1
            if not self._uses[one]:
                self.values.pop(one, None)

    def _operand(self, reader: Node, node: Node) -> Any:
        kept = self._before_edit.get((reader, node))  # an operand may stand there twice
        return self.values[node] if kept is None else kept

    def _keep_for_readers(self, edit: Call) -> None:
        """Readers recorded before an edit that run after it see what they would have seen."""
        copies: dict[Node, Tensor] = {}
        for reader in edit.storage.readers:
            if reader.index >= edit.index or reader in self._done or reader not in self._needed:
                continue
            for node in reader.inputs:
                if node.storage is edit.storage and node in self.values and (reader, node) not in self._before_edit:
                    copies.setdefault(node, self.values[node].clone())
                    self._before_edit[reader, node] = copies[node]


class Station(Listener):
    """Hands the value of a place to a run."""

    def __init__(self, arrive: Callable[[Place, Tensor], Tensor], place: Place) -> None:
        super().__init__(fn=arrive)
        self.place = place
        self.thread = get_ident()

    def fire(self, value: Tensor, point: HookPoint) -> Tensor:
        # a pass of another thread, which came by the native model and not by the lock, is none of ours
        return self.fn(self.place, value) if get_ident() == self.thread else value
