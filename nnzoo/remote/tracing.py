"""Traces that a server runs: recorded here on shapes alone, sent as a graph, filled in with what comes back."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_leaves

from nnzoo.prompts import Prompt
from nnzoo.remote.backward import differentiable
from nnzoo.remote.client import Client, connect
from nnzoo.remote.job import Backend, Job
from nnzoo.remote.protocol import Message
from nnzoo.remote.requests import Request, request_of
from nnzoo.tracing.caching import CacheView
from nnzoo.tracing.filling import fill_in, held
from nnzoo.tracing.graph import Call, Invoke, Node, Put
from nnzoo.tracing.graph_object import Graph, Recorded
from nnzoo.tracing.lazy import LazyTensor
from nnzoo.tracing.recorder import Recorder, TraceError
from nnzoo.tracing.saving import heed, save_what_is_in
from nnzoo.tracing.tracer import Tracer

if TYPE_CHECKING:
    from nnzoo.tracing.traced import TracedModel


@dataclass(frozen=True)
class Target:
    """Where a trace goes: `remote` is True for CONFIG.API.HOST, or another address; and whether it waits there."""

    remote: bool | str = True
    blocking: bool = True

    def connect(self) -> Client:
        """Its client. Raises NoServer where no address is known."""
        return connect(self.remote if isinstance(self.remote, str) else None)


@dataclass(frozen=True)
class Drawn:
    """A generation that is over: what its tokens were drawn from."""

    generator: torch.Generator


class RemoteExecution:
    """Stands where a trace has its execution: what is to run is sent."""

    def __init__(self, tracer: "RemoteTracer", target: Target) -> None:
        self._tracer = weakref.ref(tracer)
        self._target, self._client = target, target.connect()  # that there is none is said at once
        self._max_batch: int | None = None  # asked for by Graph.of
        self.decoders: dict[Invoke, Drawn] = {}
        self.job: Job | None = None
        self._seen: dict[Any, Any] = {}  # what looks have found, while nothing was done that could change it
        self._upto = 0
        self.has_forgotten = False  # what a look had found was changed since

    # --- a look --------------------------------------------------------------------------------------------------

    def look(self, recorder: Recorder, roots: list[Node]) -> dict[Node, Any]:
        """The values of some nodes, by a round trip, with what was recorded so far."""
        self._forget_what_changed(recorder)
        asked = [node for node in roots if node not in self._seen]
        if asked:
            values = self._found(asked)
            self._seen |= {node: values.get(node, _ABSENT) for node in asked}
        return {node: self._seen[node] for node in roots if self._seen[node] is not _ABSENT}

    def _found(self, roots: list[Node]) -> dict[Node, Any]:
        request = self._request(roots)

        def receive(message: Message) -> dict[Node, Any]:
            self.decoders |= {invoke: Drawn(one) for invoke, one in request.drawn(message).items()}
            return request.values(message)

        return Job.send(self._client, request.data, wait=True, receive=receive).result()

    def _forget_what_changed(self, recorder: Recorder) -> None:
        fresh = recorder.nodes[self._upto :]
        self._upto = len(recorder.nodes)
        if any(isinstance(node, Put) or (isinstance(node, Call) and node.writes) for node in fresh) or recorder.effects:
            self.has_forgotten |= bool(self._seen)
            self._seen.clear()

    # --- the end -------------------------------------------------------------------------------------------------

    def send(
        self, roots: list[Node], fill: Callable[[dict[Node, Any]], Any], failed: Callable[[BaseException], None]
    ) -> Job:
        """Send it all; what comes back goes to `fill`, and an error to `failed`."""
        recorder = self._recorded().recorder
        request = self._request(roots, recorder.effects)

        def receive(message: Message) -> Any:
            self.decoders |= {invoke: Drawn(one) for invoke, one in request.drawn(message).items()}
            request.add_gradients(message)
            return fill(differentiable(request, request.values(message), self._message))

        wait = self._target.blocking
        self.job = Job.send(self._client, request.data, wait=wait, receive=receive, failed=failed)
        return self.job

    def _message(self, data: bytes) -> Message:
        return Job.send(self._client, data, wait=True, receive=lambda message: message).result()

    def _request(self, roots: list[Node], effects: list[Node] | tuple = ()) -> Request:
        return request_of(self._recorded(), self._client.name_of, roots, effects)

    def _recorded(self) -> Recorded:
        tracer = self._tracer()
        assert tracer is not None, "a trace that runs is there"
        recorded = Graph.of(tracer)._recorded
        assert recorded is not None, "what was not read was recorded"
        return recorded


_ABSENT = object()
_NOT_HERE = "is not here yet: its trace was sent with blocking=False as job"
_NO_STREAMER = "a streamer hears each token when it is chosen, and a server's come back together: leave it out"


class NotHere:
    """Stands where a lazy tensor has its recorder, and says why nothing can be done with it."""

    def __init__(self, why: str) -> None:
        self._why, self.saved = why, frozenset[Node]()

    def check_open(self, *args: Any, **kwargs: Any) -> Any:
        """Raise TraceError."""
        raise TraceError(self._why)

    record = look = save = loss_of = check_open


class RemoteTracer(Tracer):
    """A trace that a server runs: `with model.trace(prompt, remote=True): ...`.

    What is saved comes back when the block ends; or with `blocking=False`, when `tracer.job` is over.
    """

    is_remote = True

    def __init__(self, model: "TracedModel", prompt: Prompt | None, target: Target, **how: Any) -> None:
        if how.pop("grad", False):
            raise ValueError(
                "grad=True keeps the autograd graph of values, and no graph crosses a wire: take gradients in the "
                "body of the trace, loss.backward(), and read .grad there or afterwards"
            )
        if how.get("streamer") is not None:
            raise ValueError(_NO_STREAMER)
        max_batch = how.pop("max_batch", None)
        super().__init__(model, prompt, **how)
        self._target = target
        self._execution = RemoteExecution(self, target)
        self._execution._max_batch = max_batch
        self.recorder._run = self._execution.look
        heed(self.recorder)

    # --- what comes back -----------------------------------------------------------------------------------------

    @property
    def job(self) -> Job:
        """The job on the server, once the block has ended. Raises TraceError before."""
        if self._execution.job is None:
            raise TraceError("there is no job: it is sent when the block ends, and only if something is saved in it")
        return self._execution.job

    @property
    def backend(self) -> Backend:
        """The job by nnsight's names: `.job_id`, `.status`, and called, the result or None."""
        return Backend(self.job)

    def generate(self, options: dict[str, Any], streamer: Any = None) -> LazyTensor:
        """As in any trace; the ids, which are few, come back without being saved. Raises ValueError for a streamer."""
        if streamer is not None:
            raise ValueError(_NO_STREAMER)
        ids = super().generate(options)
        self.recorder.saved.add(ids._node)
        return ids

    def cache(self, *args: Any, **kwargs: Any) -> CacheView:
        """As in any trace: asking for a cache saves what is in it."""
        view = super().cache(*args, **kwargs)
        self._at_the_end.append(lambda tracer: tracer.recorder.saved.update(_nodes_of(view)))
        return view

    # --- steps ---------------------------------------------------------------------------------------------------

    def reaches(self, step: int) -> bool:
        """Whether the generation comes to a step: where the text may end before, a round trip, or what one has told."""
        asked = [i for i in self.scope if i.decoder is not None and i.decoder.may_end_early]
        if step == 0 or len(asked) < len(self.scope):
            return super().reaches(step)
        last = step + 1 if self._execution.has_forgotten else self.most_steps  # no body that edits: all at once
        nodes = [self._arriving(invoke, n) for n in range(step, last) for invoke in asked]
        found = self._execution.look(self.recorder, nodes)
        return any(node in found for node in nodes[: len(asked)])

    def _arriving(self, invoke: Invoke, step: int) -> Node:
        """What is there as soon as a step begins."""
        return self._places._place(invoke, next(iter(self.recorder.order)), step).arrived

    # --- the end -------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        self._complete()
        self.send()

    def send(self) -> None:
        """Send what was recorded, and unless the trace is not to wait, fill in what comes back."""
        recorder, blocking = self.recorder, self._target.blocking
        save_what_is_in(recorder)
        lazies = self._alive()
        for lazy in lazies:
            if lazy._node not in recorder.saved:
                lazy._recorder = NotHere(_not_saved(lazy._node))
        held = {lazy._node for lazy in lazies}
        asked = recorder.saved & held if blocking else recorder.saved  # a job's result() gives what nobody holds too
        recorder.roots = sorted(asked, key=lambda node: node.index)
        if not asked and not recorder.effects:
            return
        try:
            job = self._execution.send(recorder.roots, self._fill, self._failed)
            if blocking:
                job.result()
            else:
                self._await(f"{_NOT_HERE} {job.id}, whose result() waits for it, as `await` does")
        except BaseException as error:
            self._failed(error)
            raise

    def _await(self, why: str) -> None:
        """Let those who ask for what was saved be told why it is not here."""
        self.recorder.awaited = why
        for lazy in self._alive():
            if lazy._node in self.recorder.saved:
                lazy._recorder = NotHere(f"the value of {lazy._node}, recorded at {lazy._node.line}, {why}")

    def _alive(self) -> list[LazyTensor]:
        return [lazy for ref in self.recorder.alive if (lazy := ref()) is not None]

    def _failed(self, error: BaseException) -> None:
        of_job = "" if self._execution.job is None else f" (job {self._execution.job.id})"
        said = str(error) or type(error).__name__
        self._await(f"was never computed: it belongs to a trace that ended with an error{of_job}: {said}")

    def _fill(self, values: dict[Node, Any]) -> list[Any]:
        """Turn what is held into its values, and give them in the order of the program."""
        self.recorder.awaited = ""
        lazies = [lazy for lazy in held(self.recorder) if lazy._node in self.recorder.saved]
        for lazy in lazies:
            lazy._recorder = self.recorder
        fill_in([*lazies], values, with_graph=not self.gradients.backwards)
        self._decoding.adopt(self._execution.decoders)
        self._drop_steps_not_made()
        return [values[node] for node in sorted(values, key=lambda node: node.index)]


def _nodes_of(view: CacheView) -> list[Node]:
    visits = [visit for of_module in view._cache._visits.values() for visit in of_module]
    leaves = tree_leaves([(visit.output, visit.inputs) for visit in visits])
    return [one._node for one in leaves if isinstance(one, LazyTensor)]


def _not_saved(node: Node) -> str:
    return (
        f"the value of {node}, recorded at {node.line}, was not saved: value.save() in the body says what is to come "
        "back, and only saved values come back from a remote trace"
    )
