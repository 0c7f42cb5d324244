"""The `with` block of a session: traces that run one after the other and use each other's values."""

from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING

from nnzoo.tracing.recorder import TraceError

if TYPE_CHECKING:
    from nnzoo.tracing.traced import TracedModel


class Session:
    """Traces that belong together.

    Here each runs when its own block ends, so a later one finds the values of those before it, saved or not. Between
    them stands ordinary Python.
    """

    is_remote = False  # here; whether a server runs it

    def __init__(self, model: "TracedModel | None") -> None:
        self._model, self._entered = model, False

    def __enter__(self) -> "Session":
        if self._entered:
            raise TraceError("a session is entered once; model.session() makes another")
        if _of_any_model.get() is not None:
            raise TraceError("a session inside nnzoo.session(): its traces belong to the one that is open")
        if self._model is None:
            _of_any_model.set(self)
        else:
            self._begin(self._model)
        self._entered = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if _of_any_model.get() is self:
            _of_any_model.set(None)
        if self._model is not None:
            self._model._session.set(None)

    def _begin(self, model: "TracedModel") -> None:
        """It is a session of this model. Raises TraceError where that has one, or runs a trace."""
        if model._session.get() is not None:
            raise TraceError("a session inside a session of the same model: its traces belong to the one that is open")
        if model._tracer.get() is not None:
            raise TraceError("a session inside a trace: a session holds traces, so it begins before them")
        self._model = model
        model._session.set(self)

    def take_in(self, model: "TracedModel") -> "Session":
        """Let a model trace in a session that began without one. Raises TraceError where it has no place in it."""
        if not self.is_remote:
            return self
        if self._model is not None:
            raise TraceError(
                f"a remote session is one request to one model, here {self._model._checkpoint.name}; trace "
                f"{model._checkpoint.name} before or after it, or in a session of its own"
            )
        self._begin(model)
        return self


_of_any_model: ContextVar[Session | None] = ContextVar("session of any model", default=None)  # the open one


def session_of(model: "TracedModel") -> Session | None:
    """The session that a model's traces belong to now, if any."""
    own = model._session.get()
    if own is not None:
        return own
    shared = _of_any_model.get()
    return None if shared is None else shared.take_in(model)


def session(*, remote: bool | str = False, blocking: bool = True) -> Session:
    """Traces of any models that belong together: `with nnzoo.session(): ...`. A later one uses values of those before.

    >>> import nnzoo
    >>> teacher, student = nnzoo.LanguageModel("nnzoo/tiny-gpt2"), nnzoo.LanguageModel("nnzoo/tiny-llama")
    >>> with nnzoo.session():
    ...     with teacher.trace("The capital of France is"):
    ...         told = teacher.output[0, -1].log_softmax(-1)
    ...     with student.trace("The capital of France is"):
    ...         distance = (student.output[0, -1].log_softmax(-1) - told).norm()
    >>> distance > 0
    tensor(True)

    With `remote=True` it is one request, as `model.session(remote=True)` of the first model that is traced in it: a
    server has one model at a time, so a trace of a second one raises TraceError.
    """
    return new_session(None, remote, blocking)


def new_session(model: "TracedModel | None", remote: bool | str, blocking: bool) -> Session:
    """A session of a model, or of whichever is traced in it; where `remote` says so, one that a server runs."""
    if not remote:
        return Session(model)
    from nnzoo.remote.session import RemoteSession  # it stands on this package
    from nnzoo.remote.tracing import Target

    return RemoteSession(model, Target(remote, blocking))
