"""Requests made of local traces, and what comes back for them."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from nnzoo import LanguageModel
from nnzoo.remote.limits import Limits
from nnzoo.remote.protocol import Message, pack, unpack
from nnzoo.remote.running import run_requests
from nnzoo.remote.watching import Progress
from nnzoo.tracing.graph_object import Graph


def packed(graph: Graph) -> bytes:
    """A graph as a request."""
    return pack("request", {"model": "any", "graph": graph.to_json()}, graph.tensors)


def answers(
    model: LanguageModel,
    requests: Sequence[bytes],
    limits: Limits | None = None,
    report: Callable[[int, Progress], None] = lambda number, progress: None,
) -> list[Message]:
    """What comes back for requests that are run at once."""
    found = run_requests(model, requests, limits or Limits(), report)
    return [unpack(data, kinds=["result", "error"]) for data in found]


def values(message: Message) -> dict[int, Tensor]:
    """The saved values of a result, by the numbers of their nodes."""
    assert message.kind == "result", message.fields
    return {int(number): message.tensors[name] for number, name in message.fields["saved"].items()}


def refusal(model: LanguageModel, request: bytes, limits: Limits | None = None) -> dict[str, Any]:
    """The fields of the error that a request is answered with."""
    (message,) = answers(model, [request], limits)
    assert message.kind == "error", message.fields
    return message.fields
