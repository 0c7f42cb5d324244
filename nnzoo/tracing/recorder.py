"""The recorder: turns what a body does to lazy tensors into a graph.

Every operation is answered from shapes alone (so a wrong shape is an error at the user's line), learns what it needs of
which pass, and is tied to the writes that it must see. An operation that needs numbers makes the model run that far.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import torch
from torch import Tensor

from nnzoo.prompts import loss_of
from nnzoo.tracing.arguments import (
    call_with,
    edited,
    index_metas,
    lazies,
    name_of,
    operands,
    picks_by_traced_integers,
    stand_in,
    to_meta,
    with_nodes,
    with_numbers,
)
from nnzoo.tracing.blame import say_of
from nnzoo.tracing.custom import CustomFunctions
from nnzoo.tracing.graph import Call, Node, Pick, Put, Storage
from nnzoo.tracing.infer import UNKNOWN, Answer, NeedsValues, infer, map_tensors, moves, picked
from nnzoo.tracing.lazy import LazyTensor
from nnzoo.tracing.lengths import map_lengths
from nnzoo.tracing.modes import Modes
from nnzoo.tracing.random_numbers import draw
from nnzoo.tracing.saved_numbers import with_value
from nnzoo.tracing.step_lists import Appended
from nnzoo.tracing.tape import StepValues, Tape
from nnzoo.tracing.writing import TraceError, Writer

__all__ = ["Recorder", "TraceError"]

OF_GRADIENTS = {"backward", "grad", "retain_grad", "requires_grad_", "requires_grad", "register_hook"}
_REAL_DEVICE = {"device", "is_cpu", "is_cuda", "is_meta", "get_device"}  # asked of the model, not of the meta device
_LOOKS = set("__reduce_ex__ data_ptr untyped_storage storage __dlpack__ __dlpack_device__".split())  # of numbers
_FROM_SHAPE = set(
    "zeros_like ones_like empty_like full_like rand_like randn_like randint_like "
    "new_zeros new_ones new_empty new_full new_tensor".split()
)
# in place, they change a tensor's shape: a traced value becomes the view that the same function without "_" gives
_TURNS = set("t_ transpose_ swapaxes_ swapdims_ squeeze_ unsqueeze_ as_strided_".split())
_ALIKE: dict[str, Callable] = {"view_as": Tensor.view, "expand_as": Tensor.expand, "reshape_as": Tensor.reshape}
# of torch.autograd.forward_ad, whose levels are gone when the model runs
_FORWARD = {"_make_dual", "_unpack_dual", "_add_batch_dim"}
_RESIZES = {"resize_", "resize_as_", "set_", "rename_"}


class Recorder(Writer):
    """What answers for the lazy tensors of one trace while its body runs.

    `run` runs the model for some nodes and gives their values.
    """

    containers: list[Any]  # lists and dicts that were saved, where nnzoo.tracing.saving heeds them
    until_then = "When its block has ended, it is a plain tensor, and can be used in this one"

    def __init__(
        self, device: torch.device, order: dict[str, int], run: Callable[["Recorder", list[Node]], dict[Node, Any]]
    ) -> None:
        super().__init__(device, order)
        self._run = run
        self._moves = moves(device)
        self.saved: set[Node] = set()
        self.lists: list[StepValues] = []  # those of a `with tracer.iter[...]`
        self.appended = Appended()  # to lists of the user's, in one
        self.roots: list[Node] = []  # what was asked for when the body was over
        self.alive: list[weakref.ref[LazyTensor]] = []
        self.open = True
        self.awaited = ""  # why no value is there although the trace has ended
        self.ended = "a trace that ended with an error"  # what values belong to that were never computed
        self.differentiated: set[Node] = set()  # nodes whose gradient the body wants kept
        self.tape: Tape | None = None  # what is done goes on it too
        self._answering = False
        self._functions: CustomFunctions | None = None  # once one may have been applied
        self.gradients: Any = None  # a nnzoo.tracing.gradients.Gradients, which answers for OF_GRADIENTS

    # --- operations ----------------------------------------------------------------------------------------------

    def record(self, fn: Callable, args: tuple, kwargs: dict, shapes: Callable | None = None) -> Any:
        """What a function of lazy tensors gives: lazy tensors, or plain numbers where shapes decide them.

        `shapes` is a function that answers on the meta device for one that cannot.
        """
        self.check_open()
        if self.modes.grad and not torch.is_grad_enabled():  # as it is in the forward of an autograd.Function
            self._functions = self._functions or CustomFunctions()
            application = self._functions.running(self)
            if application is not None:
                return application.record(fn, args, kwargs, shapes)
        return self.do(fn, args, kwargs, shapes)

    def do(self, fn: Callable, args: tuple, kwargs: dict, shapes: Callable | None) -> Any:
        """Record a function by itself, wherever its line is."""
        if kwargs.get("out") is not None and lazies(kwargs["out"]):
            return self._into(fn, args, kwargs, shapes)
        name = name_of(fn)
        if name in _TURNS:
            args[0]._node = self.record(getattr(Tensor, name[:-1]), args, kwargs, shapes)._node
            return args[0]
        if name in _ALIKE:  # only the other's shape is asked for, not its numbers
            view: Any = _ALIKE[name]
            one, other = (*args, *kwargs.values())
            return self.record(view, (one, other.shape), {}) if isinstance(one, LazyTensor) else view(one, other.shape)
        if self.tape is None or self._answering:
            return self._answer(fn, args, kwargs, shapes)
        with self.off_tape():  # what the answer is made of is no entry of its own
            result = self._answer(fn, map_lengths(int, args), map_lengths(int, kwargs), shapes)
        modes = Modes.now(self.device)
        return self.tape.did(fn, args, kwargs, shapes, result, None if modes == self.modes else modes)

    @contextmanager
    def off_tape(self) -> Iterator[None]:
        """Inside the `with`, what is done is part of something that is on the tape itself."""
        answering, self._answering = self._answering, True
        try:
            yield
        finally:
            self._answering = answering

    def settle_functions(self) -> None:
        """The body is over, and with it all forwards of autograd.Functions."""
        if self._functions is not None:
            self._functions.settle(self)

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
        if name in OF_GRADIENTS:
            self._check_no_tape(f".{name}")
            return self.gradients.answer(name, fn, args, kwargs)
        if getattr(fn, "__name__", "") == "__set__":
            raise TraceError(f".{name} of a traced value cannot be set; make a new value instead")
        if name in _RESIZES or (name.startswith("_foreach_") and name.endswith("_")):
            raise TraceError(f"{name} of a traced value: make a new value instead")
        if name in _FORWARD:
            raise TraceError("of a traced value, torch.func.jvp and torch.func.jacfwd give forward-mode derivatives")
        if name in _REAL_DEVICE or (name == "type" and len(args) == 1 and not kwargs):
            return call_with(fn, lambda t: stand_in(t, self.device), args[:1], {})
        if name in _LOOKS:
            return self._now(fn, args, kwargs)
        if name == "item":
            return with_value(self._now(fn, args, kwargs))
        if name in _FROM_SHAPE and len(lazies((args, kwargs))) == 1:
            return self.constant(call_with(fn, lambda t: stand_in(t, self.device), args, kwargs))
        if name == "__getitem__":
            if isinstance(args[1], str):
                return self._by_name(args[0], args[1])
            args = (args[0], with_numbers(args[1], args[0]))
            if not isinstance(args[0], LazyTensor) and picks_by_traced_integers(args[1]):
                return self._part_of_real(*args)
        return self._record(fn, name, args, kwargs, shapes)

    def _record(self, fn: Callable, name: str, args: tuple, kwargs: dict, shapes: Callable | None) -> Any:
        target = edited(name, args, kwargs)
        if target is not None and not isinstance(target, LazyTensor):
            return self._now(fn, args, kwargs)  # a real tensor is written: it needs the numbers
        if target is not None and isinstance(target._node.storage.written, Refusal):
            target._node.storage.written.check(target._node)  # before the write is in the graph
        try:
            answer = self._infer(shapes or self._moves.get(name, fn), name, args, kwargs)
        except NeedsValues:
            answer = UNKNOWN  # of an edit: numbers decide which elements are written; shape and dtype stay
        except Exception as error:
            say_of(error, fn, with_nodes(args), with_nodes(kwargs))
            raise
        if not answer.leaves and target is None:
            return self._now(fn, args, kwargs) if answer is UNKNOWN else answer.result
        changes = self._changed(name, answer, args, kwargs) if target is None and answer.changed else ()
        random = None
        if answer.draws:
            kwargs, random = draw(fn, args, kwargs, self._stand_in(answer, args, kwargs, changes), self.device)
        edits = None if target is None else target._node
        node = self.call(fn, with_nodes(args), with_nodes(kwargs), answer, edits=edits, random=random, changes=changes)
        if target is not None:
            return None if name == "__setitem__" else target
        return self.results(node, answer)

    def _part_of_real(self, real: Tensor, index: Any) -> Any:
        """What traced integers pick from a real tensor: a copy, since that one stays as it is when the model runs."""
        part = self._record(picked, "picked", (real, index), {}, None)
        part._node.storage.written = _PART_OF_REAL
        return part

    def save(self, lazy: LazyTensor) -> Any:
        """Keep a value; inside a tape over several steps, one of each."""
        self.saved.add(lazy._node)
        if self.tape is not None:
            self.lists.append(self.tape.keep(lazy))
        return lazy if self.tape is None else self.lists[-1]

    @staticmethod
    def _by_name(lazy: LazyTensor, name: str) -> Any:
        """What the model's output has by a name, as transformers' output does: `model.output["logits"]`."""
        if name not in ("logits", "loss"):
            raise KeyError(f"{lazy!r} has no {name!r}; the model's output has ['logits'] and ['loss']")
        return getattr(lazy, name)

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

    def _stand_in(
        self, answer: Answer, args: tuple, kwargs: dict, changes: tuple[Tensor, ...]
    ) -> Callable[[Tensor], Tensor]:
        """What stands for each tensor while random numbers are drawn: as many must be drawn as the values will draw."""
        values: dict[Node, Any] = {}
        if answer.by_value:
            with suppress(TraceError):  # where nobody can look, as many as ones draw
                values = self._values([lazy._node for lazy in lazies((args, kwargs))])

        def stand_for(t: Tensor) -> Tensor:
            if isinstance(t, LazyTensor) and t._node in values:
                return values[t._node].clone()
            return t.clone() if any(t is one for one in changes) else stand_in(t, self.device, fill=1.0)

        return stand_for

    def _changed(self, name: str, answer: Answer, args: tuple, kwargs: dict) -> tuple[Tensor, ...]:
        """The real tensors that a call changes in place, a batch norm its running statistics."""
        given: list[Tensor] = []
        map_tensors(given.append, (args, kwargs))
        changed = tuple(given[i] for i in answer.changed)
        if lazies(changed):
            raise TraceError(
                f"{name} would change a traced value in place; call it on a clone, and set the value to it"
            )
        return changed

    def _infer(self, fn: Callable, name: str, args: tuple, kwargs: dict) -> Answer:
        inputs = lazies((args, kwargs))
        for lazy in inputs:
            self.check_ours(lazy)
            if lazy._node.meta is None:
                raise NeedsValues  # how long generated ids are, only numbers tell
        if name == "__setitem__" and any(m.dtype == torch.bool for m in index_metas(args[1])):
            return UNKNOWN  # which elements a mask picks only numbers tell; nothing else is to be known
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

    def close(self) -> None:
        """The body is over: what was recorded stays, to be printed, but lets go of the tensors that it was given."""
        self.open, self.gradients, self._functions = False, None, None
        self.let_go()

    def check_ours(self, lazy: LazyTensor) -> None:
        """Raise TraceError for a value of another trace."""
        if lazy._recorder is not self:
            lazy._recorder.check_open()
            raise TraceError(
                f"{lazy!r}, made at {lazy._node.line}, belongs to another trace, which has not run yet. "
                f"{lazy._recorder.until_then}"
            )

    def check_open(self) -> None:
        """Raise TraceError when the trace has ended."""
        if not self.open:
            raise TraceError(f"this value was never computed: it belongs to {self.ended}")


class Refusal:
    """Stands in a storage's `written` where nothing may be written, and says why."""

    def __init__(self, why: str) -> None:
        self._why = why

    def __call__(self, write: Node) -> NoReturn:
        raise TraceError(self._why)

    def check(self, node: Node) -> None:
        """Raise TraceError where this refuses a write into a node's storage."""
        if node.storage.written is self:
            self(node)


_PART_OF_REAL = Refusal(
    "what a traced integer picks from a real tensor cannot be changed in place: that tensor stays as it is; change "
    "a clone of the part"
)
