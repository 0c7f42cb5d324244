"""Backward passes after a remote trace: no autograd graph crosses a wire, so the program goes there again, and back.

A value that was made of a tensor that requires grad comes back with a node of autograd's graph. When a backward pass
comes to it, the server runs the program once more, with that backward pass at its end, and sends the gradients.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from nnzoo.remote.protocol import Message
from nnzoo.remote.requests import Request
from nnzoo.tracing.arguments import name_of, operands
from nnzoo.tracing.entries import Entry, Meta, Ref
from nnzoo.tracing.graph import Arrive, Call, Node, Put
from nnzoo.tracing.recorder import Recorder

Send = Callable[[bytes], Message]


def differentiable(request: Request, values: dict[Node, Any], send: Send) -> dict[Node, Any]:
    """The values, those with a graph behind them that were made of tensors that require grad.

    As in a trace here, there is none where the body has a backward pass of its own, or runs under `no_grad`.
    """
    recorder = request.recorded.recorder
    given = {name: t for name, t in request.given.items() if t.requires_grad}
    if not given or recorder.effects or not (recorder.modes.grad and torch.is_grad_enabled()):
        return values
    learning = _learning(request.nodes, recorder)
    nodes = [node for node in values if node in learning and node.meta is not None and node.meta.is_floating_point()]
    if not nodes:
        return values
    later = _Later(request, [request.nodes.index(node) for node in nodes], [*given], send)
    outputs = _Remote.apply(later, [values[node] for node in nodes], *given.values())
    return {**values, **dict(zip(nodes, outputs, strict=True))}


def _learning(nodes: Sequence[Node], recorder: Recorder) -> set[Node]:
    """The values that were made of tensors that require grad, as far as autograd follows them."""
    found: set[Node] = set()
    waiting = [node for node in nodes if not (isinstance(node, Call) and _is_cut_off(node, recorder))]
    while fresh := [node for node in waiting if _is_made_of(node, found, recorder.puts)]:
        found.update(fresh)
        waiting = [node for node in waiting if node not in found]
    return found


def _is_cut_off(call: Call, recorder: Recorder) -> bool:
    return not (call.modes or recorder.modes).grad or name_of(call.fn) in ("detach", "data")


def _is_made_of(node: Node, found: set[Node], puts: Sequence[Node]) -> bool:
    if isinstance(node, Arrive):
        ((invoke, stage),) = node.needs.items()
        changed = [one.place if isinstance(one, Put) else one.storage.place for one in puts if one in found]
        return any(place.invoke is invoke and place.stage < stage for place in changed if place is not None)
    constants = operands((node.args, node.kwargs))[1] if isinstance(node, Call) else []
    return any(t.requires_grad and not t.is_meta for t in constants) or not found.isdisjoint(node.sources())


class _Later:
    """The program of a request, to be sent again with a backward pass."""

    def __init__(self, request: Request, numbers: list[int], names: list[str], send: Send) -> None:
        self._request, self._numbers, self._names, self._send = request, numbers, names, send

    def gradients(self, outputs: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Those of the tensors that were given, for those of the values."""
        entries = list(self._request.program.entries)
        for number, gradient in zip(self._numbers, outputs, strict=True):
            if gradient is not None:
                entries += _backward_entries(entries[number], number, len(entries), gradient)
        message = self._send(self._request.again(replace(self._request.program, entries=entries, saved=())))
        found = message.fields["gradients"]
        given = [self._request.given[name] for name in self._names]
        return [
            message.tensors[found[name]].to(device=t.device, dtype=t.dtype) if name in found else None
            for name, t in zip(self._names, given, strict=True)
        ]


def _backward_entries(of: Entry, number: int, new: int, gradient: Tensor) -> tuple[Entry, Entry]:
    meta = Meta(tuple(gradient.shape), gradient.dtype)
    start = Entry(kind="call", line=of.line, meta=meta, fn=torch.clone, args=(gradient.detach(),))
    return start, Entry(kind="backward", line=of.line, args=(Ref(number), Ref(new)), end=new + 2)


class _Remote(torch.autograd.Function):
    """Values of tensors, worked out elsewhere."""

    @staticmethod
    def forward(ctx: Any, later: _Later, values: list[Tensor], *given: Tensor) -> tuple[Tensor, ...]:
        ctx.later = later
        ctx.set_materialize_grads(False)
        # a tensor each: detached values that are the same stay without graph
        return tuple(one.detach() for one in values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        return (None, None, *ctx.later.gradients(gradients))
