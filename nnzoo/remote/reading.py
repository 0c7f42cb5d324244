"""A request as a program on a model, checked: what is wrong or too much is found out here, before anything runs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from nnzoo.language_model import LanguageModel
from nnzoo.remote.limits import Limits, check_data, check_program, check_replayed
from nnzoo.remote.protocol import ProtocolError, header_bytes, unpack
from nnzoo.tracing.entries import Program
from nnzoo.tracing.functions import GraphError
from nnzoo.tracing.graph import Invoke, Node, Stage
from nnzoo.tracing.graph_json import decode_data, parse
from nnzoo.tracing.memory import in_order
from nnzoo.tracing.replay import Replayed, replay

_KINDS = ("request",)


@dataclass
class Job:
    """A request that is ready to run."""

    number: int  # among the requests
    data: bytes
    program: Program
    new: Replayed
    alive: int  # bytes, at once
    saved: dict[Node, int]  # what comes back, with its number in the graph
    last: dict[Invoke, Stage] = field(default_factory=dict)  # the furthest that is asked of each pass

    def asks_for_end(self, invoke: Invoke) -> bool:
        """Whether a prompt's generation runs to its end."""
        return invoke in self.last and self.last[invoke].is_end

    @property
    def n_tokens(self) -> int | None:
        """How many tokens are generated at most."""
        decoders = [invoke.decoder for invoke in self.new.invokes if invoke.decoder is not None]
        return max((decoder.options.max_new_tokens for decoder in decoders), default=None)


def read(number: int, data: bytes, model: LanguageModel, limits: Limits) -> Job:
    """A request on a model. Raises ProtocolError, GraphError or LimitError."""
    limits.check("request_bytes", len(data))
    limits.check("graph_bytes", header_bytes(data, _KINDS))
    message = unpack(data, kinds=_KINDS)
    graph = parse(message.fields["graph"])
    check_data(limits, graph)
    _check_tensors(graph, message.tensors)
    program = decode_data(graph, message.tensors, model.device)
    check_program(limits, program)
    new = replay(program, model)
    if not new.recorder.roots and not new.recorder.effects:
        raise GraphError("nothing in the graph is saved: value.save() says what is to come back")
    job = Job(number, data, program, new, check_replayed(limits, new), {one: one.index for one in new.recorder.roots})
    for node in in_order(new.recorder, program.max_batch):
        for invoke, stage in node.needs.items():
            job.last[invoke] = max(stage, job.last.get(invoke, stage))
    return job


def _check_tensors(graph: Any, tensors: Mapping[str, Tensor]) -> None:
    named = graph.get("tensors") if isinstance(graph, dict) else None
    unused = sorted(set(tensors) - set(named or ())) if isinstance(named, (dict, type(None))) else []
    if unused:
        raise ProtocolError(f"the graph says nothing of the tensor {unused[0]!r:.40}, which comes with it")
