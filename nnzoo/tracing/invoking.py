"""The `with` block of an invoke: its body speaks of one prompt, or of all so far."""

from types import TracebackType
from typing import TYPE_CHECKING

from nnzoo.prompts import Prompt
from nnzoo.tracing.recorder import TraceError

if TYPE_CHECKING:
    from nnzoo.tracing.tracer import Tracer


class Stop(BaseException):
    """Ends the innermost body of a trace: what `tracer.stop()` raises. No `except Exception` of the body takes it."""


class InvokeBody:
    """`with tracer.invoke(prompt): ...`"""

    def __init__(self, tracer: "Tracer", prompt: Prompt | None) -> None:
        self._tracer, self._prompt = tracer, prompt

    def __enter__(self) -> "Tracer":
        tracer = self._tracer
        tracer.check_running()
        if tracer._scope:
            raise TraceError("an invoke inside another prompt's body; prompts stand side by side: leave it first")
        if self._prompt is not None:
            tracer._scope = [tracer.add(self._prompt)]
        elif tracer.invokes:
            tracer._scope = list(tracer.invokes)
        else:
            raise TraceError("an invoke without a prompt is of all prompts before it, and there is none")
        tracer.step, tracer.ahead = 0, {}
        return tracer

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        self._tracer._scope, self._tracer.step = [], 0
        return kind is Stop
