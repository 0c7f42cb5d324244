"""A recorded program as plain data: one entry for each node, in program order, which knows others by their numbers.

It can be written down and read without a model. `entries_of` makes it from nodes, `replay.py` records it again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from nnzoo.tracing.gradients import Backward, Flowing, Gradient, Redirect
from nnzoo.tracing.graph import Arrive, Call, Chosen, Invoke, Line, Node, Pick, Put, Result, fill
from nnzoo.tracing.modes import Modes


@dataclass(frozen=True)
class Ref:
    """Another entry, where its value stands among arguments."""

    number: int

    def __str__(self) -> str:
        return f"%{self.number}"


@dataclass(frozen=True)
class Parameter:
    """A weight of the model where it stands among arguments; `view` is size, stride and offset of a part of it."""

    name: str
    view: tuple[tuple[int, ...], tuple[int, ...], int] | None = None
    detached: bool = False

    def __str__(self) -> str:
        return f"<{self.name}>"


@dataclass(frozen=True)
class Meta:
    """The shape and dtype of a value."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)}"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One node. Which fields count, its kind says: see `FIELDS`."""

    kind: str
    line: Line
    meta: Meta | None = None
    hook: str | None = None
    invoke: int = 0
    step: int = 0
    fn: Callable | None = None
    args: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    edits: int | None = None  # the node that a call changes in place
    random: Tensor | None = None
    modes: Modes | None = None
    view: str | None = None  # the einops pattern by which it is a place's value in another arrangement
    which: int = 0
    of: int = 0  # the node that it is about
    by: int = 0  # the backward pass, or the gradient that is set
    end: int = 0  # the number after the last node of a backward pass's body
    retain_graph: bool = False
    create_graph: bool = False


FIELDS = {
    "arrive": ("invoke", "hook", "step"),
    "result": ("invoke",),
    "chosen": ("invoke", "step"),
    "put": ("invoke", "hook", "step", "of"),
    "call": ("fn", "args", "kwargs", "edits", "random", "modes", "hook", "view"),
    "pick": ("of", "which"),
    "backward": ("args", "retain_graph", "create_graph", "end"),
    "gradient": ("of",),
    "flowing": ("of", "by"),
    "put_gradient": ("of", "by"),
}


@dataclass(frozen=True)
class PromptEntry:
    """The prompt of an invoke, and how it is generated from."""

    tokens: Tensor  # [batch pos]
    attention_mask: Tensor | None = None
    labels: Tensor | None = None
    last_only: bool = False
    options: dict[str, Any] | None = None  # those of a generation
    generator: Tensor | None = None  # the state of the random numbers that it draws


@dataclass(frozen=True, kw_only=True)
class Program:
    """All that was recorded in a trace, and how the trace was opened."""

    about: dict[str, Any]  # of the model: what a graph needs of it
    prompts: list[PromptEntry]
    entries: list[Entry]
    saved: tuple[int, ...]
    kept_gradients: tuple[int, ...] = ()  # nodes whose `.grad` is kept
    grad: bool = False
    needs_grad: bool = False
    max_batch: int | None = None
    modes: Modes
    tensors: dict[str, Tensor] = field(default_factory=dict)  # of one that was read: those it was stored with


def entries_of(nodes: Sequence[Node]) -> list[Entry]:
    """The entries of nodes: of all that were recorded so far, or of those alone that some values need."""
    numbers = {node: number for number, node in enumerate(nodes)}
    return [_entry(node, numbers) for node in nodes]


Numbers = Mapping[Node, int]


def _entry(node: Node, numbers: Numbers) -> Entry:
    meta = None if node.meta is None else Meta(tuple(node.meta.shape), node.meta.dtype)
    kind, values = _describe(node, numbers)
    return Entry(kind=kind, line=node.line, meta=meta, **values)


def _describe(node: Node, numbers: Numbers) -> tuple[str, dict[str, Any]]:
    match node:
        case Arrive():
            ((invoke, stage),) = node.needs.items()
            return "arrive", {"invoke": invoke.index, "hook": node.hook, "step": stage.step}
        case Result():
            assert node.invoke is not None
            return "result", {"invoke": node.invoke.index}
        case Chosen():
            ((invoke, stage),) = node.needs.items()
            return "chosen", {"invoke": invoke.index, "step": stage.step}
        case Put(place=place):
            at = {"invoke": place.invoke.index, "hook": place.hook, "step": place.stage.step}
            return "put", {**at, "of": numbers[node.inputs[0]]}
        case Redirect(flowing=flowing):
            return "put_gradient", {"of": numbers[node.inputs[0]], "by": numbers[flowing]}
        case Call():
            return "call", _call(node, numbers)
        case Pick():
            return "pick", {"of": numbers[node.inputs[0]], "which": node.which}
        case Backward():
            body = [numbers[one] for one in (node, *node.inside, *node.flowing) if one in numbers]
            args = tuple(Ref(numbers[one]) for one in node.inputs)
            return "backward", {"args": args, "end": 1 + max(body), **node.options}
        case Gradient():
            return "gradient", {"of": numbers[node.of]}
        case Flowing():
            (backward,) = [one for one in node.after if isinstance(one, Backward)]
            return "flowing", {"of": numbers[node.of], "by": numbers[backward]}
    raise AssertionError(f"a kind of node that has no entry: {type(node).__name__}")


def _call(node: Call, numbers: Numbers) -> dict[str, Any]:
    def ref(one: Node) -> Ref:
        return Ref(numbers[one])

    edited = None
    if node.writes:
        edited = next(numbers[one] for one in node.inputs if one.storage is node.storage)
    return {
        "fn": node.fn,
        "args": fill(node.args, ref),
        "kwargs": fill(node.kwargs, ref),
        "edits": edited,
        "random": node.random,
        "modes": node.modes,
        "hook": node.hook,
        "view": None if node.view is None else node.view.pattern,
    }


def prompt_of(invoke: Invoke) -> PromptEntry:
    """The prompt of an invoke as it was given: before it was repeated for several sequences."""
    decoder = invoke.decoder
    if decoder is None:
        return PromptEntry(invoke.tokens, invoke.attention_mask, invoke.labels, invoke.last_only)
    once = slice(None, None, decoder.options.num_return_sequences)
    mask = None if invoke.attention_mask is None else invoke.attention_mask[once]
    options = {one.name: getattr(decoder.options, one.name) for one in fields(decoder.options)}
    drawn = decoder._generator if decoder.options.seed is None else None
    state = None if drawn is None else drawn.get_state()
    return PromptEntry(invoke.tokens[once], mask, invoke.labels, invoke.last_only, options, state)


def about(model: Any) -> dict[str, Any]:
    """What a graph says of its model: enough to tell another one by."""
    config = model.config
    return {
        "kind": type(model.skeleton).__name__,
        "n_layers": config.n_layers,
        "d_model": config.d_model,
        "d_vocab": config.d_vocab,
        "dtype": str(model.skeleton.dtype).removeprefix("torch."),
        "name": str(model._checkpoint.name),
    }
