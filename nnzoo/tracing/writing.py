"""The graph as it is written down: nodes in program order, each after the writes that it must see.

What a node needs of which pass is settled here, and refused where no order of passes can give it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nnzoo.tracing.arguments import Gone, operands
from nnzoo.tracing.graph import (
    END,
    NOTHING,
    Arrive,
    Call,
    Invoke,
    Line,
    Needs,
    Node,
    Place,
    Put,
    Stage,
    Storage,
    together,
)
from nnzoo.tracing.infer import Answer, map_tensors
from nnzoo.tracing.lines import user_line
from nnzoo.tracing.modes import Modes
from nnzoo.tracing.pass_order import PassOrder


class TraceError(RuntimeError):
    """What a body asks for cannot be had from the model's passes; `line` is the user's, if not the last one."""

    def __init__(self, message: str, line: Line | None = None) -> None:
        super().__init__(message)
        self.line = line


class Writer:
    """The graph of one trace; `device` is the model's, and `order` numbers its hook points."""

    def __init__(self, device: torch.device, order: dict[str, int]) -> None:
        self.device, self.order = device, order
        self.modes = Modes.now(device)  # those of the trace: the model's passes run under them
        self.passes = PassOrder()
        self.nodes: list[Node] = []
        self.puts: list[Node] = []  # nodes that change what the model goes on with
        self.effects: list[Node] = []  # what runs whatever is asked: backward passes, and what changes real tensors
        self.given: list[Call] = []  # nodes that hold tensors
        self.keeps_tensors = False  # somebody asked for the graph, and may store it
        self.needs_grad = False
        self.custom: Line | None = None  # an autograd.Function, whose own backward no node knows

    def call(
        self,
        fn: Callable,
        args: tuple,
        kwargs: dict,
        answer: Answer,
        *,
        edits: Node | None = None,
        random: Tensor | None = None,
        changes: tuple[Tensor, ...] = (),
    ) -> Call:
        """A node for a call whose answer is known; one that `edits` its first input in place shares its storage.

        One that `changes` real tensors runs whatever is asked, as it would without a trace.
        """
        inputs, constants = operands((args, kwargs))
        self.needs_grad |= any(t.requires_grad and not t.is_meta for t in constants)
        aliased = next((a for a in answer.aliases if a is not None), None)
        storage = Storage() if aliased is None else inputs[aliased].storage
        modes = Modes.now(self.device)
        node = self.add(
            Call,
            inputs,
            storage=storage if edits is None else edits.storage,
            meta=answer.leaves[0] if len(answer.leaves) == 1 else None,
            fn=fn,
            args=args,
            kwargs=kwargs,
            versions=self._versions(constants, changes),
            writes=edits is not None,
            modes=None if modes == self.modes else modes,
            random=random,
            changes=changes,
        )
        if changes:
            self.effects.append(node)
        if constants or random is not None:
            self.given.append(node)
        if edits is not None:
            self._edit(node)
        return node

    @staticmethod
    def _versions(constants: list[Tensor], changes: tuple[Tensor, ...]) -> tuple[tuple[Tensor, int], ...]:
        fixed = [t for t in constants if all(t is not one for one in changes)] if changes else constants
        return tuple((t, t._version) for t in fixed if not t.is_inference())

    def _edit(self, node: Call) -> None:
        storage = node.storage
        place = storage.place
        if place is not None:
            if place.current.storage is storage:
                was_put = isinstance(place.current, Put)  # memory of the body's own, which need not wait for the pass
                self.settle(node, place, at_once=was_put)
            self.puts.append(node)
        storage.writes.append(node)
        if storage.written is not None:
            storage.written(node)

    def add(
        self,
        kind: type,
        inputs: tuple[Node, ...],
        *,
        storage: Storage | None = None,
        needs: Needs = NOTHING,
        **fields: Any,
    ) -> Any:
        """A node after all writes that its inputs must have seen."""
        after: tuple[Node, ...] = ()
        if inputs:
            after = tuple([node.storage.writes[-1] for node in inputs if node.storage.writes])
            needs = together((*inputs, *after))
        node = kind(
            index=len(self.nodes),
            needs=needs,
            storage=Storage() if storage is None else storage,
            line=user_line(),
            inputs=inputs,
            after=after,
            **fields,
        )
        self.nodes.append(node)
        for one in inputs:
            one.storage.readers.append(node)
        return node

    def settle(self, node: Node, place: Place, *, at_once: bool = False) -> None:
        """A node changes a place: from then on it needs that its invoke's pass is there, unless it does so `at_once`,
        and whatever it took comes before. Raises TraceError where that is impossible.
        """
        if obstacle := self.passes.change(place, node.needs):
            raise TraceError(self._too_late(place, *obstacle))
        if not at_once:
            node.needs = {**node.needs, place.invoke: place.stage}

    def _too_late(self, place: Place, source: Invoke, stage: Stage, obstacle: Stage) -> str:
        value = self.name_of_stage(stage)
        if source is place.invoke:
            return (
                f"{place.hook} cannot be set from {value}, which the same pass computes later. Take the value from a "
                "trace of its own first, or clone what you want to change: value.clone()"
            )
        return (
            f"{place.hook} of {place.invoke} cannot be set from {value} of {source}, which needs "
            f"{self.name_of_stage(obstacle)} of {place.invoke} first, and that comes later. Take one of the two from a "
            "trace of its own"
        )

    def name_of_stage(self, stage: Stage) -> str:
        """What happens at a stage, in words."""
        if stage >= END:
            return "the generated ids" if stage == END else "a gradient"
        name = next((hook for hook, order in self.order.items() if order == stage.order), "the chosen token")
        return name if stage.step == 0 else f"{name} at step {stage.step}"

    def let_go(self) -> None:
        """Nodes let go of the tensors that they were given, unless the graph may be stored."""
        for call in self.given if not self.keeps_tensors else ():
            call.args, call.kwargs = map_tensors(Gone, call.args), call.kwargs and map_tensors(Gone, call.kwargs)
            call.versions, call.changes, call.random = (), (), None
        for node in self.nodes:
            node.storage.written = None  # it holds the recorder

    def __del__(self) -> None:
        """Nodes let go of one another, which are many, and would wait for the garbage collector."""
        for node in self.nodes:
            storage = node.storage
            storage.readers, storage.writes, storage.place, storage.written = [], [], None, None
            node.inputs = node.after = ()
            node.needs = NOTHING
            if isinstance(node, Call):
                node.args, node.kwargs, node.versions, node.changes = (), {}, (), ()
            elif isinstance(node, Arrive) and node.invoke is not None:
                node.invoke.places.clear()
