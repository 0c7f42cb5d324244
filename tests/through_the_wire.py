"""The same tests through the wire: traces become remote ones, of the very model, and all that is held counts as saved.

`pytest --remote` runs any tests so; a module asks for it by the fixture `through_the_wire`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from nnzoo.remote import tracing
from nnzoo.remote.requests import Request, request_of
from nnzoo.remote.tracing import RemoteTracer
from nnzoo.tracing.lazy import LazyTensor
from nnzoo.tracing.traced import TracedModel
from remote_stand_in import StandIn


class Whichever(dict):
    """Models of a server: under every name the one whose trace is being sent."""

    current: Any = None

    def __contains__(self, name: object) -> bool:
        return True

    def __getitem__(self, name: object) -> Any:
        return self.current


@contextmanager
def everything_remote() -> Iterator[StandIn]:
    """Inside the `with`, traces, generations and sessions are remote, but for those that keep an autograd graph."""
    server = StandIn()
    server.models = models = Whichever()
    trace, generate, session, alive = TracedModel.trace, TracedModel.generate, TracedModel.session, RemoteTracer._alive

    def sent(recorded: Any, *args: Any) -> Request:
        models.current = recorded.model
        return request_of(recorded, *args)

    def asked(what: str, model: Any, how: dict[str, Any]) -> dict[str, Any]:
        stays = server.is_left_out or how.get("grad") or (what == "generate" and model._tracer.get() is not None)
        return how if stays else {"remote": True, **how}

    def all_saved(tracer: RemoteTracer) -> list[LazyTensor]:
        lazies = alive(tracer)
        tracer.recorder.saved |= {lazy._node for lazy in lazies}
        return lazies

    with pytest.MonkeyPatch.context() as patch, server.configured():
        patch.setattr(tracing, "request_of", sent)
        patch.setattr(RemoteTracer, "_alive", all_saved)
        patch.setattr(
            TracedModel, "trace", lambda model, *args, **how: trace(model, *args, **asked("trace", model, how))
        )
        patch.setattr(
            TracedModel, "generate", lambda model, *args, **how: generate(model, *args, **asked("generate", model, how))
        )
        patch.setattr(TracedModel, "session", lambda model, **how: session(model, **asked("session", model, how)))
        yield server
