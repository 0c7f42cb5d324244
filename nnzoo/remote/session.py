"""A session that a server runs: its traces become prompts of one program, which is sent when the session ends."""

from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nnzoo.prompts import Prompt
from nnzoo.remote.job import Backend, Job
from nnzoo.remote.tracing import RemoteTracer, Target
from nnzoo.tracing.arguments import edited
from nnzoo.tracing.blame import add_hints
from nnzoo.tracing.gradients import Gradients
from nnzoo.tracing.graph import Invoke, Node
from nnzoo.tracing.graph_object import Graph
from nnzoo.tracing.invoking import Stop
from nnzoo.tracing.lazy import LazyTensor
from nnzoo.tracing.lines import end_at_the_user, end_at_what_was_recorded
from nnzoo.tracing.modes import Modes
from nnzoo.tracing.pending import Generated
from nnzoo.tracing.places import Places
from nnzoo.tracing.recorder import Recorder, TraceError
from nnzoo.tracing.saving import heed
from nnzoo.tracing.session import Session

if TYPE_CHECKING:
    from nnzoo.tracing.traced import TracedModel


class SessionRecorder(Recorder):
    """Records traces that come one after the other; what is edited when its trace is over is no place of a pass."""

    until_then = (
        "In a remote session it is a plain tensor when the session has ended: let the traces that follow do with it "
        "what is to be done, or do this after the session"
    )

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.over: set[Invoke] = set()  # prompts of traces that are over

    def _record(self, fn: Any, name: str, args: tuple, kwargs: dict, shapes: Any) -> Any:
        target = edited(name, args, kwargs)
        if isinstance(target, LazyTensor) and self._is_of_the_past(target._node):
            self._part_from_its_place(target)
        return super()._record(fn, name, args, kwargs, shapes)

    def _is_of_the_past(self, node: Node) -> bool:
        return node.storage.place is not None and node.storage.place.invoke in self.over

    def _part_from_its_place(self, lazy: LazyTensor) -> None:
        """From here on a value is a tensor of its own, as it is after a trace that has run."""
        old = lazy._node
        others = [one for ref in self.alive if (one := ref()) is not None and one is not lazy]
        if any(one._node.storage is old.storage and one._node is not old for one in others):
            raise TraceError(
                f"the value of {old}, recorded at {old.line}, shares its memory with another that you hold, and its "
                "trace is over: take a clone before you edit it, value = value.clone()"
            )
        new = self.function(Tensor.clone, old, meta=old.meta)
        for one in (lazy, *(one for one in others if one._node is old)):
            one._node = new
        if old in self.saved:
            self.saved.add(new)


class Program(RemoteTracer):
    """What a whole session records; nobody's body runs in it."""

    def __init__(self, model: "TracedModel", target: Target) -> None:
        super().__init__(model, None, target)
        self.failed: BaseException | None = None  # what a trace of the session ended with
        self.recorder: SessionRecorder = SessionRecorder(model.device, model.order, self._execution.look)
        self.gradients = Gradients(self.recorder)
        self._places = Places(self.recorder, self._shapes)
        heed(self.recorder)


class SessionTracer(RemoteTracer):
    """A trace in a remote session: its body is recorded, and runs with the others when the session ends."""

    def __init__(self, model: "TracedModel", prompt: Prompt | None, program: Program, **how: Any) -> None:
        max_batch = how.get("max_batch")
        super().__init__(model, prompt, program._target, **how)
        self._program, self._past = program, program.recorder.over
        self.recorder, self.gradients, self._places = program.recorder, program.gradients, program._places
        self._execution = program._execution
        if max_batch is not None:
            self._execution._max_batch = min(max_batch, self._execution._max_batch or max_batch)
        _check_modes(program.recorder)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        is_whole = kind in (None, Stop)
        try:
            if is_whole:
                self._complete()
                self._draw_at_once()
        except BaseException as raised:
            self._program.failed = raised
            raise
        finally:
            self.model.leave(self)
            self._past.update(self.invokes)
        if error is not None and not is_whole:
            self._program.failed = error
            add_hints(error, self.model.block_output)
            end_at_the_user(error, traceback)
        return kind is Stop

    def _next_index(self) -> int:
        return len(self._program.invokes)

    def add(self, prompt: Prompt) -> Invoke:
        """Add a prompt's rows to the session."""
        invoke = super().add(prompt)
        self._program.invokes.append(invoke)
        return invoke

    def _draw_at_once(self) -> None:
        """What is drawn next, here or in the next trace, depends on how much this generation draws: it runs now."""
        drawing = self._decoding.drawing
        if drawing is not None:
            self._execution.look(self.recorder, [self._ids_of(drawing)._node])
            self._decoding.adopt(self._execution.decoders)

    @property
    def graph(self) -> Graph:
        """The graph of the session, as far as it has come."""
        self.edits.finish()
        return self._program.graph


def _check_modes(recorder: Recorder) -> None:
    then, now = recorder.modes, Modes.now(recorder.device)
    if (then.autocast, then.default_dtype) != (now.autocast, now.default_dtype):
        raise TraceError("a remote session runs under one autocast and one default dtype: set them before it begins")


class RemoteSession(Session):
    """A session that is one request: `with model.session(remote=True) as session: ...`."""

    is_remote = True

    def __init__(self, model: "TracedModel | None", target: Target) -> None:
        super().__init__(model)
        self._target = target
        target.connect()  # that no server is known is said at once
        self._program: Program | None = None
        self.generated: list[Generated] = []  # what `model.generate(prompt)` gave in it

    def open(self, model: "TracedModel", prompt: Prompt | None, **how: Any) -> SessionTracer:
        """A trace of the session."""
        return SessionTracer(model, prompt, self.program, **how)

    @property
    def program(self) -> Program:
        """What it has recorded. Raises TraceError before it has begun, and without a model before its first trace."""
        if self._program is None:
            raise TraceError("nothing has been traced in this session: with model.session(remote=True): ...")
        return self._program

    @property
    def job(self) -> Job:
        """The job on the server, once the session has ended."""
        return self.program.job

    @property
    def backend(self) -> Backend:
        """The job by nnsight's names."""
        return self.program.backend

    def _begin(self, model: "TracedModel") -> None:
        super()._begin(model)
        try:
            self._program = Program(model, self._target)
        except BaseException:
            model._session.set(None)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._send(self.program)
                self.program.recorder.ended = self.program.ended
        except Exception as raised:
            raise end_at_what_was_recorded(raised) from raised.__cause__
        finally:
            super().__exit__(kind, error, traceback)
            if self._program is not None:
                self._program.recorder.close()

    def _send(self, program: Program) -> None:
        for one in self.generated:
            one.make()
        if program.failed is not None:
            raise TraceError(
                "a trace of this session ended with an error, so the session was not sent"
            ) from program.failed
        program.send()
