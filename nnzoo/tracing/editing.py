"""The `with` block of an edit."""

import sys
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from nnzoo.prompts import Prompt
from nnzoo.tracing.edit_steps import APART, EditIndex
from nnzoo.tracing.edits import Edit, Part, outside_of_its_loop
from nnzoo.tracing.graph import Invoke, Place, Stage
from nnzoo.tracing.lazy import LazyTensor
from nnzoo.tracing.lines import user_line
from nnzoo.tracing.recorder import Recorder, TraceError
from nnzoo.tracing.tape import Tape
from nnzoo.tracing.tracer import Tracer

if TYPE_CHECKING:
    from nnzoo.tracing.traced import TracedModel

NOMINAL = 7  # tokens of the prompt for which an edit is recorded


class EditTape(Tape):
    """A tape of which nothing is kept."""

    def keep(self, value: LazyTensor) -> LazyTensor:
        return value


class EditTracer(Tracer):
    """Records what every later trace of a model does first: `with model.edit() as edited: ...`."""

    ended = "an edit, which computes nothing; read it in a trace of the edited model"

    def __init__(self, model: "TracedModel", *, inplace: bool) -> None:
        super().__init__(model, Prompt(torch.zeros(1, NOMINAL, dtype=torch.long, device=model.device)))
        self._inplace = inplace
        self.parts: list[Part] = []
        self.in_loop, self.n_loops = False, 0
        self.recorder._too_late = self._too_late  # type: ignore[method-assign]  # it knows nothing of loops
        self.left_early: list[str] = []  # loops over steps that were left by a break

    def __enter__(self) -> Any:
        if self.model._tracer.get() is not None:
            raise TraceError(
                "an edit inside a trace: it holds in traces that begin after it, so let the trace end first"
            )
        super().__enter__()
        self.edits.finish()
        self.record()
        return self if self._inplace else self.model

    def _too_late(self, place: Place, source: Invoke, stage: Stage, obstacle: Stage) -> str:
        if stage.step >= APART and not self.in_loop:
            return outside_of_its_loop(user_line())
        return Recorder._too_late(self.recorder, place, source, stage, obstacle)

    def record(self) -> None:
        """Go on recording what holds in the first pass, or at the steps that are named one by one."""
        self.parts.append(Part(self.new_tape()))

    def new_tape(self) -> Tape:
        """What is done from here on goes on a tape of its own."""
        self.recorder.tape = EditTape("an edit, which is recorded before there is a prompt, and computes nothing")
        return self.recorder.tape

    def _finish(self) -> None:
        if self.left_early:
            raise TraceError(
                f"the loop over steps at {self.left_early[0]} was left by a break; in an edit, such a loop's body is "
                "what holds at every step. For some steps: tracer.iter[a:b]"
            )
        self.recorder.settle_functions()
        edit = Edit(tuple(part for part in self.parts if part.tape.entries), self.recorder.custom)
        edit.check()
        self.model.edits = (*self.model.edits, edit)

    # --- steps ---------------------------------------------------------------------------------------------------

    @property
    def iter(self) -> Any:
        """Steps of the generations to come: `for _ in tracer.iter[:]`, or `with tracer.iter[1:]`."""
        return EditIndex(self)

    @property
    def most_steps(self) -> int:
        """Nobody knows yet."""
        return sys.maxsize

    def reaches(self, step: int) -> bool:
        """A generation that does not come to a step leaves out what an edit does there."""
        return True

    def _step_of(self, hook: str, ahead: int) -> int:
        return self.step + ahead

    # --- what an edit cannot do ----------------------------------------------------------------------------------

    def _refuse(self, what: str, instead: str) -> NoReturn:
        raise TraceError(f"{what} in an edit: it is recorded before there is a prompt, and computes nothing. {instead}")

    def invoke(self, *args: Any, **kwargs: Any) -> NoReturn:
        """An edit has no prompts of its own."""
        self._refuse("an invoke", "It holds for every prompt of the edited model's traces")

    def generate(self, options: dict[str, Any], streamer: Any = None) -> NoReturn:
        """An edit generates nothing."""
        self._refuse("generate()", "Generate with the edited model")

    @property
    def ids(self) -> NoReturn:
        """An edit generates nothing."""
        self._refuse("generated ids", "Read them in a trace of the edited model")

    def cache(self, *args: Any, **kwargs: Any) -> NoReturn:
        """An edit computes nothing."""
        self._refuse("a cache", "Ask for it in a trace of the edited model")

    def stop(self) -> NoReturn:
        """An edit stops no pass."""
        self._refuse("stop()", "A trace runs no further than it is asked")
