"""The recorder: turns what a body does to lazy tensors into a graph.

Every operation is answered from shapes alone (so a wrong shape is an error at the user's line), learns what it needs of
which pass, and is tied to the writes that it must see. An operation that needs numbers makes the model run that far.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nnzoo.prompts import loss_of
from nnzoo.tracing.arguments import (
    Gone,
    call_with,
    edited,
    in_custom_function,
    index_metas,
    lazies,
    name_of,
    operands,
    stand_in,
    to_meta,
    user_line,
    with_nodes,
    without_masks,
)
from nnzoo.tracing.graph import (
    END,
    NOTHING,
    Arrive,
    Call,
    Invoke,
    Line,
    Needs,
    Node,
    Pick,
    Place,
    Put,
    Stage,
    Storage,
    together,
)
from nnzoo.tracing.infer import Answer, NeedsValues, infer, map_tensors, moves
from nnzoo.tracing.lazy import LazyTensor
from nnzoo.tracing.lengths import map_lengths
from nnzoo.tracing.modes import Modes, random_state
from nnzoo.tracing.pass_order import PassOrder
from nnzoo.tracing.tape import StepValues, Tape

_REAL_DEVICE = {"device", "is_cpu", "is_cuda", "is_meta", "get_device"}  # asked of the model, not of the meta device
_LOOKS = {"__reduce_ex__", "data_ptr", "untyped_storage", "storage"}  # pickle, copy.copy, torch.save: of numbers
_FROM_SHAPE = set(
    "zeros_like ones_like empty_like full_like rand_like randn_like randint_like "
    "new_zeros new_ones new_empty new_full new_tensor".split()
)
_RANDOM = set(
    "bernoulli bernoulli_ dropout dropout_ alpha_dropout feature_dropout feature_alpha_dropout dropout1d dropout2d "
    "dropout3d rrelu rrelu_ multinomial normal normal_ uniform_ exponential_ log_normal_ cauchy_ geometric_ random_ "
    "poisson gumbel_softmax".split()
)


# in place, they change a tensor's shape: a traced value becomes the view that the same function without "_" gives
_TURNS = set("t_ transpose_ swapaxes_ swapdims_ squeeze_ unsqueeze_ as_strided_".split())
_ALIKE: dict[str, Callable] = {"view_as": Tensor.view, "expand_as": Tensor.expand, "reshape_as": Tensor.reshape}
_RESIZES = {"resize_", "resize_as_", "set_", "rename_"}


class TraceError(RuntimeError):
    """What a body asks for cannot be had from the model's passes."""


class Recorder:
    """The graph of one trace while its body runs.

    `device` is the model's, and `run` runs the model for some nodes and gives their values.
    """

    def __init__(
        self, device: torch.device, order: dict[str, int], run: Callable[["Recorder", list[Node]], dict[Node, Any]]
    ) -> None:
        self.device, self.order = device, order
        self._run = run
        self._moves = moves(device)
        self.modes = Modes.now(device.type)  # those of the trace: the model's passes run under them
        self.passes = PassOrder()
        self.nodes: list[Node] = []
        self.puts: list[Node] = []  # nodes that change what the model goes on with
        self.effects: list[Node] = []  # nodes that run whatever is asked: backward passes
        self.saved: set[Node] = set()
        self.lists: list[StepValues] = []  # those of a `with tracer.iter[...]`
        self.roots: list[Node] = []  # what was asked for when the body was over
        self.given: list[Call] = []  # nodes that hold tensors
        self.keeps_tensors = False  # somebody asked for the graph, and may store it
        self.alive: list[weakref.ref[LazyTensor]] = []
        self.open = True
        self.ended = "a trace that ended with an error"  # what values belong to that were never computed
        self.needs_grad = False
        self.differentiated: set[Node] = set()  # nodes whose gradient the body wants kept
        self.tape: Tape | None = None  # what is done goes on it too
        self._answering = False
        self.custom: Line | None = None  # inside an autograd.Function, whose backward no node knows
        self.special: dict[str, Callable[[Callable, tuple, dict], Any]] = {}  # names that others answer: gradients

    # --- operations ----------------------------------------------------------------------------------------------

    def record(self, fn: Callable, args: tuple, kwargs: dict, shapes: Callable | None = None) -> Any:
        """What a function of lazy tensors gives: lazy tensors, or plain numbers where shapes decide them.

        `shapes` is a function that answers on the meta device for one that cannot.
        """
        self.check_open()
        if kwargs.get("out") is not None and lazies(kwargs["out"]):
            return self._into(fn, args, kwargs, shapes)
        if name_of(fn) in _TURNS:
            args[0]._node = self.record(getattr(Tensor, name_of(fn)[:-1]), args, kwargs, shapes)._node
            return args[0]
        if name_of(fn) in _ALIKE:  # only the other's shape is asked for, not its numbers
            view: Any = _ALIKE[name_of(fn)]
            one, other = (*args, *kwargs.values())
            return self.record(view, (one, other.shape), {}) if isinstance(one, LazyTensor) else view(one, other.shape)
        if self.tape is None or self._answering:
            return self._answer(fn, args, kwargs, shapes)
        self._answering = True  # what the answer is made of is no entry of its own
        try:
            result = self._answer(fn, map_lengths(int, args), map_lengths(int, kwargs), shapes)
        finally:
            self._answering = False
        modes = Modes.now(self.device.type)
        return self.tape.did(fn, args, kwargs, shapes, result, None if modes == self.modes else modes)

    def _into(self, fn: Callable, args: tuple, kwargs: dict, shapes: Callable | None) -> Any:
        """A function whose results are written into traced values, `out=`."""
        out = kwargs["out"]
        results = self.record(fn, args, {name: value for name, value in kwargs.items() if name != "out"}, shapes)
        several = isinstance(out, (tuple, list))
        for one, result in zip(out if several else [out], results if several else [results], strict=True):
            if one.shape != result.shape:
                raise RuntimeError(f"out= has the shape {list(one.shape)}, the result {list(result.shape)}")
            one.copy_(result)
        return out

    def _answer(self, fn: Callable, args: tuple, kwargs: dict, shapes: Callable | None) -> Any:
        name = name_of(fn)
        if name in self.special:
            self._check_no_tape(f".{name}")
            return self.special[name](fn, args, kwargs)
        if getattr(fn, "__name__", "") == "__set__":
            raise TraceError(f".{name} of a traced value cannot be set; make a new value instead")
        if name in _RESIZES or (name.startswith("_foreach_") and name.endswith("_")):
            raise TraceError(f"{name} of a traced value: make a new value instead")
        if name in _REAL_DEVICE:
            return call_with(fn, lambda t: torch.empty(0, device=self.device), args[:1], {})
        if name in _LOOKS:
            return self._now(fn, args, kwargs)
        if name in _FROM_SHAPE and len(lazies((args, kwargs))) == 1:
            return self.constant(call_with(fn, lambda t: stand_in(t, self.device), args, kwargs))
        if name == "__getitem__":
            args = (args[0], without_masks(args[1]))
        return self._record(fn, name, args, kwargs, shapes)

    def _record(self, fn: Callable, name: str, args: tuple, kwargs: dict, shapes: Callable | None) -> Any:
        target = edited(name, args, kwargs)
        if target is not None and not isinstance(target, LazyTensor):
            return self._now(fn, args, kwargs)  # a real tensor is written: it needs the numbers
        try:
            answer = self._infer(shapes or self._moves.get(name, fn), name, args, kwargs)
        except NeedsValues:
            if target is None:
                return self._now(fn, args, kwargs)
            answer = Answer(None, (), ())  # numbers decide which elements are written; shape and dtype stay
        if not answer.leaves and target is None:
            return answer.result
        random = self._draw(fn, args, kwargs) if name in _RANDOM else None
        edits = None if target is None else target._node
        node = self.call(fn, with_nodes(args), with_nodes(kwargs), answer, edits=edits, random=random)
        if target is not None:
            return None if name == "__setitem__" else target
        return self.results(node, answer)

    def save(self, lazy: LazyTensor) -> Any:
        """Keep a value; inside a tape over several steps, one of each."""
        self.saved.add(lazy._node)
        if self.tape is not None:
            self.lists.append(self.tape.keep(lazy))
        return lazy if self.tape is None else self.lists[-1]

    def loss_of(self, logits: LazyTensor) -> Any:
        """The loss of a prompt that was given with `labels=`, by the logits as they stand."""
        node = logits._node
        invoke = node.place.invoke if isinstance(node, Put) else getattr(node, "invoke", None)
        if invoke is None or invoke.labels is None:
            raise AttributeError("there is no .loss without labels: model.trace(prompt, labels=...)")
        return loss_of(logits, invoke.labels)

    def look(self, node: Node) -> Any:
        """A node's value now: the model runs as far as it needs, with what was recorded so far."""
        self.check_open()
        return self._values([node])[node]

    def constant(self, value: Tensor) -> LazyTensor:
        """A tensor of the body's own that the trace may edit."""
        meta = to_meta(value)
        return LazyTensor(self.call(torch.clone, (value,), {}, Answer(meta, (meta,), (None,))), self)

    def function(self, fn: Callable, *args: Any, meta: Tensor | None = None, edits: Node | None = None) -> Call:
        """A call of a function of ours on nodes; `meta` where its result is known to be no alias of an argument."""
        if meta is not None:
            return self.call(fn, args, {}, Answer(meta, (meta,), (None,)), edits=edits)
        metas, _ = operands(args)
        answer = infer(fn, tuple(a.meta if isinstance(a, Node) else a for a in args), {}, [n.meta for n in metas])
        return self.call(fn, args, {}, answer, edits=edits)

    def _now(self, fn: Callable, args: tuple, kwargs: dict) -> Any:
        nodes = [lazy._node for lazy in lazies((args, kwargs))]
        values = self._values(nodes)
        return call_with(fn, lambda t: values[t._node] if isinstance(t, LazyTensor) else t, args, kwargs)

    def _values(self, nodes: list[Node]) -> dict[Node, Any]:
        self._check_no_tape("a look at a value")
        values = self._run(self, nodes)
        for node in nodes:
            if node not in values:
                raise TraceError(f"{node} at {node.line} is never computed: the text ends before that step")
        return values

    def _check_no_tape(self, what: str) -> None:
        if self.tape is not None:
            raise TraceError(f"{what} is not possible inside {self.tape.why}")

    def _draw(self, fn: Callable, args: tuple, kwargs: dict) -> Tensor:
        """The generator's state; a stand-in draws as many numbers as the value will."""
        state = random_state(self.device)
        call_with(fn, lambda t: stand_in(t, self.device, fill=1.0), args, kwargs)
        return state

    def _infer(self, fn: Callable, name: str, args: tuple, kwargs: dict) -> Answer:
        inputs = lazies((args, kwargs))
        for lazy in inputs:
            self.check_ours(lazy)
            if lazy._node.meta is None:
                raise NeedsValues  # how long generated ids are, only numbers tell
        if name == "__setitem__" and any(m.dtype == torch.bool for m in index_metas(args[1])):
            return Answer(None, (), ())  # which elements a mask picks only numbers tell; nothing else is to be known
        metas = [lazy._node.meta for lazy in inputs]
        return infer(fn, map_tensors(to_meta, args), map_tensors(to_meta, kwargs), metas, self.device)

    def results(self, node: Call, answer: Answer) -> Any:
        """Lazy tensors in the structure of what a call gives."""
        if isinstance(answer.result, Tensor):
            return LazyTensor(node, self)
        picks = iter(
            [
                self.add(
                    Pick, (node,), storage=node.inputs[a].storage if a is not None else Storage(), meta=meta, which=i
                )
                for i, (meta, a) in enumerate(zip(answer.leaves, answer.aliases, strict=True))
            ]
        )
        return map_tensors(lambda _: LazyTensor(next(picks), self), answer.result)

    def call(
        self,
        fn: Callable,
        args: tuple,
        kwargs: dict,
        answer: Answer,
        *,
        edits: Node | None = None,
        random: Tensor | None = None,
    ) -> Call:
        """A node for a call whose answer is known; one that `edits` its first input in place shares its storage."""
        inputs, constants = operands((args, kwargs))
        self.needs_grad |= any(t.requires_grad and not t.is_meta for t in constants)
        aliased = next((a for a in answer.aliases if a is not None), None)
        storage = Storage() if aliased is None else inputs[aliased].storage
        modes = Modes.now(self.device.type)
        if self.custom is None and self.modes.grad and not modes.grad and in_custom_function():
            self.custom = user_line()
        node = self.add(
            Call,
            inputs,
            storage=storage if edits is None else edits.storage,
            meta=answer.leaves[0] if len(answer.leaves) == 1 else None,
            fn=fn,
            args=args,
            kwargs=kwargs,
            versions=tuple((t, t._version) for t in constants if not t.is_inference()),
            writes=edits is not None,
            modes=None if modes == self.modes else modes,
            random=random,
        )
        if constants or random is not None:
            self.given.append(node)
        if edits is not None:
            self._edit(node)
        return node

    def _edit(self, node: Call) -> None:
        storage = node.storage
        if storage.place is not None:
            if storage.place.current.storage is storage:
                self.settle(node, storage.place)
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
        after = tuple(node.storage.writes[-1] for node in inputs if node.storage.writes)
        node = kind(
            index=len(self.nodes),
            needs=together((*inputs, *after)) if inputs else needs,
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

    def settle(self, node: Node, place: Place) -> None:
        """A node changes a place: from then on it needs that its invoke's pass is there, and whatever it took comes
        before. Raises TraceError where that is impossible.
        """
        if obstacle := self.passes.change(place, node.needs):
            raise TraceError(self._too_late(place, *obstacle))
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

    def check_ours(self, lazy: LazyTensor) -> None:
        """Raise TraceError for a value of another trace."""
        if lazy._recorder is not self:
            lazy._recorder.check_open()
            raise TraceError(
                f"{lazy!r}, made at {lazy._node.line}, belongs to another trace, which has not run yet. When its block "
                "has ended, it is a plain tensor, and can be used in this one"
            )

    def close(self) -> None:
        """The body is over: what was recorded stays, to be printed, but lets go of the tensors that it was given."""
        self.open, self.special = False, {}
        for call in self.given if not self.keeps_tensors else ():
            call.args, call.kwargs = map_tensors(Gone, call.args), call.kwargs and map_tensors(Gone, call.kwargs)
            call.versions, call.random = (), None
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
                node.args, node.kwargs, node.versions = (), {}, ()
            elif isinstance(node, Arrive) and node.invoke is not None:
                node.invoke.places.clear()

    def check_open(self) -> None:
        """Raise TraceError when the trace has ended."""
        if not self.open:
            raise TraceError(f"this value was never computed: it belongs to {self.ended}")
