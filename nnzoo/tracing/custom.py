"""torch.autograd.Functions that a body applies to traced values: each becomes one node, which applies it when it runs.

PyTorch calls a Function's forward from C, past `__torch_function__`: what the recorder sees are the operations inside.
At the first of them the forward is gone through once ahead, to learn what it gives; after the last, what it gives is
made to stand for the results of the one node, whose backward is the Function's own.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nnzoo.tracing.arguments import edited, lazies, name_of, with_nodes
from nnzoo.tracing.infer import Answer, map_tensors
from nnzoo.tracing.lazy import LazyTensor
from nnzoo.tracing.lines import user_line
from nnzoo.tracing.modes import Modes, random_state, set_random_state
from nnzoo.tracing.writing import TraceError

if TYPE_CHECKING:
    from nnzoo.tracing.recorder import Recorder

_APPLY: CodeType = torch.autograd.Function.apply.__func__.__code__  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Applied:
    """A torch.autograd.Function as a function of values."""

    of: type[torch.autograd.Function]

    def __post_init__(self) -> None:
        object.__setattr__(self, "__module__", self.of.__module__)
        object.__setattr__(self, "__name__", f"{self.of.__name__}.apply")

    def __call__(self, *args: Any) -> Any:
        return self.of.apply(*args)


class CustomFunctions:
    """The Functions that one body applies."""

    def __init__(self) -> None:
        self._last: Application | None = None

    def running(self, recorder: "Recorder") -> "Application | None":
        """The application whose forward the body is in."""
        frame = _outermost_apply()
        if self._last is None or self._last.frame is not frame:
            self.settle(recorder)
            if frame is not None:
                self._last = Application(recorder, frame)
                self._last.go_ahead()
        return self._last

    def settle(self, recorder: "Recorder") -> None:
        """No forward is running any more: one that never came to its end is not one node."""
        last, self._last = self._last, None
        if last is None or last.frame is None:
            return
        if recorder.tape is not None:
            raise TraceError(f"the torch.autograd.Function at {last.line} cannot be done again inside this block")
        recorder.custom = last.line


class Application:
    """One call of `Function.apply`, while its forward runs."""

    def __init__(self, recorder: "Recorder", frame: FrameType) -> None:
        self.frame: FrameType | None = frame  # None: it is over
        self.line = user_line()
        self._recorder = recorder
        self._function, self._args = Applied(frame.f_locals["cls"]), tuple(frame.f_locals["args"])
        self._given = {lazy._node.storage for lazy in lazies(self._args)}
        self._start = len(recorder.nodes)
        self._ahead, self._inside = True, False
        self._plain = False  # it cannot be one node: its operations are recorded one by one
        self._calls: list[Callable] = []  # the operations of the forward
        self._made: list[LazyTensor] = []  # their results
        self._expected: list[Callable] = []  # the operations as they came ahead
        self._gives: list[int] = []  # which results the Function gives
        self._stand_for: Any = None  # the node's results

    def go_ahead(self) -> None:
        """Go through the forward once, and record the node that it is."""
        before = random_state(self._recorder.device)
        given = map_tensors(self._given_back, self._forward())
        drew = not torch.equal(before, random_state(self._recorder.device))
        set_random_state(before)
        self._expected, self._calls, made, self._made = self._calls, [], self._made, []
        self._ahead = False
        leaves: list[Tensor] = []
        map_tensors(leaves.append, given)
        found = [next((i for i, one in enumerate(made) if one is leaf), None) for leaf in leaves]
        self._gives = [i for i in found if i is not None and made[i]._node.meta is not None]
        if self._plain or not leaves or len(self._gives) < len(leaves):
            self._plain = True
            return
        self._stand_for = self._record_node(given, [made[i] for i in self._gives], before if drew else None)

    def _forward(self) -> Any:
        function: Any = self._function.of
        context = function._backward_cls()
        context.needs_input_grad = tuple(isinstance(one, Tensor) for one in self._args)
        if function.setup_context is torch.autograd.Function.setup_context:
            return function.forward(context, *self._args)
        given = function.forward(*self._args)
        function.setup_context(context, self._args, given)
        return given

    def _given_back(self, one: Tensor) -> Tensor:
        """PyTorch makes a view of an argument that is given back as it is."""
        return one.view_as(one) if any(one is arg for arg in self._args) else one

    def _record_node(self, given: Any, leaves: list[LazyTensor], random: Tensor | None) -> Any:
        inputs = [lazy._node.storage for lazy in lazies(self._args)]
        aliases = [leaf._node.storage for leaf in leaves]
        answer = Answer(
            map_tensors(lambda t: t._node.meta, given),  # type: ignore[attr-defined]  # all are traced
            tuple(leaf._node.meta for leaf in leaves),
            tuple(inputs.index(one) if one in inputs else None for one in aliases),
        )
        with torch.enable_grad():  # off inside a forward, not where it is applied
            node = self._recorder.call(self._function, with_nodes(self._args), {}, answer, random=random)
        return self._recorder.results(node, answer)

    # --- the operations of the forward ---------------------------------------------------------------------------

    def record(self, fn: Callable, args: tuple, kwargs: dict, shapes: Callable | None) -> Any:
        """Record one operation of the forward."""
        recorder = self._recorder
        if self._inside or self.frame is None or (self._plain and not self._ahead):
            return recorder.do(fn, args, kwargs, shapes)
        self._check(fn, args, kwargs)
        self._inside = True
        try:
            with recorder.off_tape():
                result = recorder.do(fn, args, kwargs, shapes)
        finally:
            self._inside = False
        self._calls.append(fn)
        self._made += lazies(result)
        if not self._ahead and len(self._calls) == len(self._expected) and self._calls == self._expected:
            self._end()
        return result

    def _check(self, fn: Callable, args: tuple, kwargs: dict) -> None:
        name = name_of(fn)
        target = edited(name, args, kwargs)
        if isinstance(target, LazyTensor) and target._node.storage in self._given:
            raise TraceError(
                f"{name} in the forward of {self._function.of.__name__} changes what it is given, which a trace cannot "
                "record; let it change a clone"
            )
        for lazy in lazies((args, kwargs)):  # a value that came past its arguments is none of the node's inputs
            self._plain |= lazy._node.index < self._start and lazy._node.storage not in self._given

    def _end(self) -> None:
        """The forward has done all that it does: what it gives stands for the node's results."""
        stand_for = lazies(self._stand_for)
        for i, one in zip(self._gives, stand_for, strict=True):
            self._made[i]._node = one._node
        tape = self._recorder.tape
        if tape is not None:
            with torch.enable_grad():
                modes = Modes.now(self._recorder.device)
            same = modes == self._recorder.modes
            tape.did(self._function, self._args, {}, None, self._stand_for, None if same else modes)
        self.frame, self._args, self._made, self._stand_for = None, (), [], None


def _outermost_apply() -> FrameType | None:
    """The call of a torch.autograd.Function that the line is part of."""
    frame: FrameType | None = sys._getframe(1)
    found = None
    while frame is not None:
        if frame.f_code is _APPLY:
            found = frame
        frame = frame.f_back
    return found
