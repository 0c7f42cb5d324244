"""Gradients in a trace: `loss.backward()`, as a statement or as a `with`, and `.grad` of every recorded value.

Backward passes run when the forward pass has come as far as anybody needs. As a statement, `backward` fills `.grad` as
in PyTorch; as `with loss.backward():` its body sees each gradient as it flows by, and what it sets flows on.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from nnzoo.architectures.hooks import HookShapeError
from nnzoo.tracing.arguments import lazies, with_nodes
from nnzoo.tracing.graph import AFTER, Call, Given, Needs, Node, changed_by, together
from nnzoo.tracing.infer import Answer
from nnzoo.tracing.lazy import LazyTensor
from nnzoo.tracing.recorder import Recorder, TraceError
from nnzoo.tracing.run import Run


@dataclass(eq=False, kw_only=True, repr=False)
class Backward(Node):
    """A backward pass from a loss."""

    options: dict[str, Any]
    flowing: list["Flowing"] = field(default_factory=list)  # gradients that its body looks at
    inside: list[Node] = field(default_factory=list)  # what was recorded in its body
    changes: list[Node] = field(default_factory=list)  # of that: what changes gradients
    instead: dict["Flowing", Node] = field(default_factory=dict)  # what flows on, where it has been set

    def sources(self) -> tuple[Node, ...]:
        return (*super().sources(), *self.changes)

    def current(self, flowing: "Flowing") -> Node:
        """The node of what flows on."""
        return self.instead.get(flowing, flowing)

    def run_in(self, run: Run) -> None:
        run.differentiations -= 1
        loss, *gradient = (run.values[node] for node in self.inputs)
        if run.freed is not None:
            run.freed.go_through(loss, together(self.inputs), frees=not any(self.options.values()))
        here = [one for one in self.flowing if one in run.needed]
        handles = [run.values[one.of].register_hook(partial(self._flow, run, one)) for one in here]
        options = {**self.options, "retain_graph": self.options["retain_graph"] or run.keeps_graph}
        try:
            torch.autograd.backward([loss], gradient or None, **options)
        finally:
            for handle in handles:
                handle.remove()
        run.give(self, None)

    def _flow(self, run: Run, place: "Flowing", gradient: Tensor) -> Tensor:
        run.give(place, gradient := gradient.clone())
        for node in self.inside:
            if node in run.needed and node not in run.done and all(one in run.done for one in node.inputs + node.after):
                run.run(node)
        current = self.current(place)
        if current is place:
            return gradient
        if current not in run.done:
            raise TraceError(
                f"the gradient set at {current.line} needs another one that comes later in the backward pass"
            )
        return run.take(current)

    def __str__(self) -> str:
        return "backward"


@dataclass(eq=False, kw_only=True, repr=False)
class Gradient(Node):
    """`.grad` of a value, as backward passes have filled it."""

    of: Node

    def run(self, operand: Callable[[Node], Any]) -> Any:
        gradient = operand(self.of).grad
        if gradient is None:
            raise TraceError(f"the value at {self.of.line} has no gradient: what was differentiated does not use it")
        return gradient

    def __str__(self) -> str:
        return f"gradient of {self.of}"


@dataclass(eq=False, kw_only=True, repr=False)
class Flowing(Given):
    """The gradient of a value as it flows by in one backward pass."""

    of: Node

    def __str__(self) -> str:
        return f"gradient of {self.of}"


@dataclass(eq=False, kw_only=True, repr=False)
class Redirect(Node):
    """From here on another gradient flows."""

    flowing: Flowing  # in whose stead
    is_taken = True

    def run(self, operand: Callable[[Node], Any]) -> Any:
        return operand(self.inputs[0])

    def __str__(self) -> str:
        return "gradient = ..."


class Gradients:
    """What a recorder answers where gradients are asked for."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._waiting: list[Gradient] = []  # asked for above the backward pass that gives them
        self.backwards: list[Backward] = []
        self._open: Backward | None = None  # whose `with` body is running
        self.wholes: Any = None  # a nnzoo.tracing.wholes.Wholes, once a value of several prompts was read
        recorder.gradients = self

    def answer(self, name: str, fn: Callable, args: tuple, kwargs: dict) -> Any:
        """What a function of one of these names gives for traced values: those of the recorder's `OF_GRADIENTS`."""
        if name == "backward":
            return self._backward(fn, args, kwargs)
        if name == "grad":
            return self._grad(fn, args, kwargs)
        if name == "requires_grad":
            return self._requires_grad(fn, args, kwargs)
        if name == "register_hook":
            raise TraceError("register_hook on a traced value: read and set its .grad inside `with loss.backward():`")
        return (self._require if name == "requires_grad_" else self._asks)(fn, args, kwargs)

    def check_complete(self) -> None:
        """Raise TraceError where a gradient was asked for and no backward pass recorded."""
        if self._waiting:
            line = self._waiting[0].line
            raise TraceError(f".grad was asked for at {line}, but the trace has no backward() for it", line)

    # --- backward passes -----------------------------------------------------------------------------------------

    def _backward(self, fn: Callable, args: tuple, kwargs: dict) -> "BackwardBody":
        names = ("gradient", "retain_graph", "create_graph", "inputs")
        options = {**dict(zip(names, args[1:], strict=False)), **kwargs}
        loss, gradient = args[0], options.get("gradient")
        if options.get("inputs") is not None:
            raise TraceError("backward(inputs=...) inside a trace: torch.autograd.grad(loss, values) gives those alone")
        if gradient is None and loss._node.meta.numel() != 1:
            raise RuntimeError(
                f"backward() of a value {list(loss._node.meta.shape)}: grad can be created for scalars only; "
                "sum it first, or give backward(gradient=...)"
            )
        recorder = self._recorder
        recorder.needs_grad = True
        node = recorder.add(
            Backward,
            tuple(self._node_of(one) for one in (loss, gradient) if one is not None),
            options={name: bool(options.get(name)) for name in ("retain_graph", "create_graph")},
        )
        node.needs = at_the_end(node.needs)
        recorder.effects.append(node)
        concerned = [waiting for waiting in self._waiting if self._concerns(node, waiting.of)]
        if self.backwards:
            node.after += (self.backwards[-1],)  # gradients add up
            node.needs = together((node, self.backwards[-1]))
        for waiting in concerned:
            self._bind(waiting, node)
        self._waiting = [waiting for waiting in self._waiting if waiting not in concerned]
        self.backwards.append(node)
        return BackwardBody(self, node)

    def _concerns(self, backward: Backward, of: Node) -> bool:
        """Whether a backward pass may come to a value: to one of its own prompts, or of those that theirs depend on."""
        leads = self._recorder.passes.leads
        ends = together(backward.inputs)
        return not of.needs or any(start is end or leads(start, end) for start in of.needs for end in ends)

    def _bind(self, waiting: Gradient, node: Backward) -> None:
        """A gradient that was asked for above: it, and what was made of it, come after the backward pass."""
        waiting.after += (node,)
        late: set[Node] = {waiting}
        changes = set(self._recorder.puts)
        waiting.needs = together((waiting, node))
        for one in self._recorder.nodes[waiting.index + 1 :]:
            if late.intersection(one.inputs + one.after):
                late.add(one)
                one.needs = together((*one.inputs, *one.after))
                if one in changes and (place := changed_by(one)):
                    self._recorder.settle(one, place)

    # --- gradients -----------------------------------------------------------------------------------------------

    def _grad(self, fn: Callable, args: tuple, kwargs: dict) -> Any:
        answer = self._grad_of_one
        return answer(fn, args, kwargs) if self.wholes is None else self.wholes.grad(answer, fn, args, kwargs)

    def _grad_of_one(self, fn: Callable, args: tuple, kwargs: dict) -> Any:
        if fn is torch.autograd.grad:
            return self._differentiate(args, kwargs)
        (lazy, *new) = args
        if getattr(fn, "__name__", "") == "__set__":
            return self._set(lazy, new[0])
        return LazyTensor(self._gradient_of(lazy), self._recorder)

    def _gradient_of(self, lazy: LazyTensor) -> Node:
        if self._open is not None:
            return self._open.current(self._flowing(lazy._node, self._open))
        last = next((one for one in reversed(self.backwards) if self._concerns(one, lazy._node)), None)
        node = self._node(Gradient, lazy._node, last)
        if last is None:
            self._waiting.append(node)
            self._recorder.needs_grad = True
        return node

    def _node(self, kind: type, of: Node, last: Backward | None, **fields: Any) -> Any:
        node = self._recorder.add(
            kind, (), needs=at_the_end(of.needs), meta=of.meta, of=of, differentiates=(of,), **fields
        )
        node.inputs = (of,)  # not a reader of its memory: the gradient is that of the value with all edits
        if last is not None:
            node.after = (last,)
            node.needs = together((node, last))
        return node

    def _flowing(self, of: Node, backward: Backward) -> Flowing:
        for one in backward.flowing:
            if one.of is of:
                return one
        node = self._node(Flowing, of, backward, invoke=None)
        node.storage.written = backward.changes.append
        backward.flowing.append(node)
        return node

    def _set(self, lazy: LazyTensor, value: Any) -> None:
        backward = self._open
        if backward is None:
            raise TraceError(".grad is set inside `with loss.backward():`, where what is set flows on")
        flowing = self._flowing(lazy._node, backward)
        source = self._node_of(value)
        if source is backward.current(flowing):
            return
        if source.meta.shape != flowing.meta.shape:
            raise HookShapeError(f"the gradient of {lazy!r} cannot be set to one {list(source.meta.shape)}")
        self._flow_on(backward, flowing, source)

    def _flow_on(self, backward: Backward, flowing: Flowing, source: Node) -> None:
        node = self._recorder.add(Redirect, (source,), storage=source.storage, meta=source.meta, flowing=flowing)
        node.needs = together((node, flowing))
        backward.instead[flowing] = node
        backward.changes.append(node)

    def _node_of(self, value: Tensor) -> Node:
        return value._node if isinstance(value, LazyTensor) else self._recorder.constant(value)._node

    def _differentiate(self, args: tuple, kwargs: dict) -> Any:
        """torch.autograd.grad: gradients that are given back instead of stored."""
        recorder = self._recorder
        recorder.needs_grad = True
        names = inspect.signature(torch.autograd.grad).parameters
        named = {**dict(zip(names, args, strict=False)), **kwargs, "retain_graph": True}
        if named.get("is_grads_batched"):
            raise TraceError("is_grads_batched=True in a trace: torch.func.jacrev, or torch.vmap, gives such gradients")
        inputs = named["inputs"] if isinstance(named["inputs"], (tuple, list)) else (named["inputs"],)
        metas = tuple(lazy._node.meta for lazy in inputs)
        node = recorder.call(torch.autograd.grad, (), with_nodes(named), Answer(metas, metas, (None,) * len(metas)))
        node.needs = at_the_end(node.needs)
        node.differentiates = tuple(lazy._node for lazy in lazies(inputs))
        return recorder.results(node, Answer(metas, metas, (None,) * len(metas)))

    def _asks(self, fn: Callable, args: tuple, kwargs: dict) -> None:
        self._recorder.needs_grad = True
        self._recorder.differentiated.add(args[0]._node)

    def _require(self, fn: Callable, args: tuple, kwargs: dict) -> LazyTensor:
        lazy, *asked = (*args, *kwargs.values())
        node = lazy._node
        if asked == [False]:
            if node.hook is not None:
                raise RuntimeError(f"{node} is no leaf of the graph: use {node}.detach() for one without gradients")
            lazy._node = self._recorder.function(torch.Tensor.detach, node)
            return lazy
        if not (node.meta.is_floating_point() or node.meta.is_complex()):
            raise RuntimeError(f"{lazy!r}: only floating-point and complex numbers have gradients")
        if isinstance(node, Call) and node.view is None:  # detached, it begins a graph here
            lazy._node = self._recorder.call(require_grad, (node,), {}, Answer(node.meta, (node.meta,), (0,)))
        self._asks(fn, (lazy,), {})
        return lazy

    def _requires_grad(self, fn: Callable, args: tuple, kwargs: dict) -> bool | None:
        if getattr(fn, "__name__", "") == "__set__":
            self._require(fn, args, kwargs)
            return None
        return self._recorder.needs_grad


class BackwardBody:
    """What `backward()` gives: to be forgotten, or entered, to look at gradients and to change what flows on."""

    def __init__(self, gradients: Gradients, node: Backward) -> None:
        self._gradients, self._node = gradients, node

    def __enter__(self) -> "BackwardBody":
        if self._gradients._open is not None:
            raise TraceError("a backward pass inside another one's body")
        self._gradients._open = self._node
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        gradients, node = self._gradients, self._node
        gradients._open = None
        node.inside = [one for one in gradients._recorder.nodes[node.index + 1 :] if not isinstance(one, Given)]


def require_grad(value: Tensor) -> Tensor:
    """The value itself, from here on with gradients."""
    return value if value.is_meta else value.requires_grad_()


def at_the_end(needs: Needs) -> Needs:
    """The same passes, each at its end."""
    return dict.fromkeys(needs, AFTER)
