"""A recorded program as a request, and a result as the values of its nodes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnzoo.remote.protocol import Message, pack
from nnzoo.tracing.entries import Program
from nnzoo.tracing.functions import GraphError
from nnzoo.tracing.graph import Node, Put
from nnzoo.tracing.graph_json import store_for, write
from nnzoo.tracing.graph_object import Recorded
from nnzoo.tracing.plan import needed
from nnzoo.tracing.recorder import TraceError
from nnzoo.tracing.stored_tensors import TensorStore


@dataclass
class Request:
    """What is sent, and what its numbers and names stand for here."""

    program: Program
    nodes: list[Node]  # by their numbers in it
    store: TensorStore
    recorded: Recorded
    name_of: Callable[[str], str]  # what the server calls a model; asked when all else is known to be in order
    data: bytes = b""

    def __post_init__(self) -> None:
        self.data = self.again(self.program)

    def again(self, program: Program) -> bytes:
        """What is sent for a program of the same tensors, and more."""
        text = write(program, self.store)
        name = self.name_of(str(self.recorded.model._checkpoint.name))
        return pack("request", {"model": name, "graph": text}, self.store.tensors)

    @property
    def given(self) -> dict[str, Tensor]:
        """The body's own tensors, by their names in it."""
        return self.store.given

    def values(self, message: Message) -> dict[Node, Any]:
        """The values of a result, on the model's device; each with its `.grad`, where a backward pass filled it."""
        fields, device = message.fields, self.recorded.model.device
        tensors = {name: t.to(device) for name, t in message.tensors.items()}
        values = {self.nodes[int(number)]: tensors[name] for number, name in fields["saved"].items()}
        for number, name in fields["grads"].items():
            values[self.nodes[int(number)]].grad = tensors[name]
        return values

    def add_gradients(self, message: Message) -> None:
        """Add the gradients of the body's own tensors to what they have, as a backward pass here does."""
        for name, gradient in message.fields["gradients"].items():
            t, new = self.given[name], message.tensors[gradient]
            new = new.to(device=t.device, dtype=t.dtype)
            t.grad = new if t.grad is None else t.grad + new

    def drawn(self, message: Message) -> dict[Any, torch.Generator]:
        """The generators of the prompts whose tokens were drawn, as they stood afterwards."""
        found = {}
        for invoke, name in zip(self.recorded.invokes, message.fields["drawn"], strict=True):
            asked = None if invoke.decoder is None else invoke.decoder.generator
            if name is not None and asked is not None and len(asked.get_state()) == len(message.tensors[name]):
                found[invoke] = torch.Generator(asked.device)
                found[invoke].set_state(message.tensors[name])
        return found


def request_of(
    recorded: Recorded, name_of: Callable[[str], str], roots: Iterable[Node], effects: Iterable[Node] = ()
) -> Request:
    """The program as far as some values need it, and what runs whatever is asked; `name_of` names the model.

    Raises TraceError for what cannot be sent: a function that is not PyTorch's, a tensor that was changed since.
    """
    model, roots = recorded.model, list(roots)
    try:
        recorded.check_tensors()
        nodes = _all_of(needed([*roots, *effects], recorded.recorder.puts, set())[0])
        program = recorded.program(nodes, roots)
        store = store_for(program, model._native or model.skeleton, model.device)
        return Request(program, nodes, store, recorded, name_of)
    except GraphError as error:
        raise TraceError(f"this trace cannot be sent to a server: {error}") from error


def _all_of(nodes: list[Node]) -> list[Node]:
    """The nodes, and those that they are said by: a place that is set is named by what arrived there."""
    found = set(nodes) | {node.place.arrived for node in nodes if isinstance(node, Put)}
    return sorted(found, key=lambda node: node.index)
