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
from nnzoo.tracing.arguments import operands
from nnzoo.tracing.entries import Entry, Meta, Ref
from nnzoo.tracing.graph import Call, Node
from nnzoo.tracing.plan import needed

Send = Callable[[bytes], Message]


def differentiable(request: Request, values: dict[Node, Any], send: Send) -> dict[Node, Any]:
    """The values, those with a graph behind them that were made of tensors that require grad.

    As in a trace here, there is none where the body has a backward pass of its own, or runs under `no_grad`.
    """
    recorder = request.recorded.recorder
    given = {name: t for name, t in request.given.items() if t.requires_grad}
    if not given or recorder.effects or not (recorder.modes.grad and torch.is_grad_enabled()):
        return values
    nodes = [
        node for node in values if node.meta is not None and node.meta.is_floating_point() and _learns(node, request)
    ]
    if not nodes:
        return values
    later = _Later(request, [request.nodes.index(node) for node in nodes], [*given], send)
    outputs = _Remote.apply(later, [values[node] for node in nodes], *given.values())
    return {**values, **dict(zip(nodes, outputs, strict=True))}


def _learns(node: Node, request: Request) -> bool:
    """Whether a value was made of a tensor that requires grad."""
    sources = needed([node], request.recorded.recorder.puts, set())
    calls = [one for one in sources if isinstance(one, Call)]
    return any(t.requires_grad and not t.is_meta for call in calls for t in operands((call.args, call.kwargs))[1])


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
        return tuple(values)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        return (None, None, *ctx.later.gradients(gradients))
