"""The `with` block of a session: traces that run one after the other and use each other's values."""

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

    def __init__(self, model: "TracedModel") -> None:
        self._model, self._entered = model, False

    def __enter__(self) -> "Session":
        if self._entered:
            raise TraceError("a session is entered once; model.session() makes another")
        if self._model._session.get() is not None:
            raise TraceError("a session inside a session of the same model: its traces belong to the one that is open")
        if self._model._tracer.get() is not None:
            raise TraceError("a session inside a trace: a session holds traces, so it begins before them")
        self._entered = True
        self._model._session.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._model._session.set(None)
