"""The steps of a generation: `tracer.iter[...]`, `tracer.all()`, `tracer.next()`.

Step 0 is the prompt's pass, which chooses the first new token; step n reads the token that step n - 1 chose.
"""

import warnings
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, NoReturn

from nnzoo.envoys.attached import note
from nnzoo.tracing.recorder import TraceError
from nnzoo.tracing.step_lists import StepLists
from nnzoo.tracing.tape import Player, Tape

if TYPE_CHECKING:
    from nnzoo.tracing.tracer import Tracer

Which = int | slice | Sequence[int]


class StepIndex:
    """`tracer.iter`: index it with a step, a slice or a list of steps."""

    def __init__(self, tracer: "Tracer") -> None:
        self._tracer = tracer

    def __getitem__(self, which: Which) -> "Steps":
        return Steps(self._tracer, which)

    def __iter__(self) -> Iterator[int]:
        return iter(self[:])


class AllAtOnce:
    """What `with tracer.iter[a:b] as step` binds for several steps: no number, since the body runs once for all."""

    def __init__(self, steps: list[int]) -> None:
        self._steps = steps

    def __repr__(self) -> str:
        return f"steps {', '.join(map(str, self._steps))}"

    def _no_number(self, *_: object) -> NoReturn:
        raise TraceError(
            f"the body of this `with` runs once for {self}, so there is no number of a step in it: write "
            "`for step in tracer.iter[...]:`, whose body runs step by step"
        )

    __bool__ = __int__ = __index__ = __float__ = __hash__ = _no_number
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _no_number
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __mod__ = __floordiv__ = _no_number


class Steps:
    """Some steps of a generation.

    As `for step in tracer.iter[a:b]` the loop is an ordinary one, whose body speaks of one step at a time; it ends
    where the text ends. As `with tracer.iter[a:b]:` the body is run once, and holds at each of the steps: what is saved
    in it is a list of one value a step. Either warns where more steps are named than there are.
    """

    def __init__(self, tracer: "Tracer", which: Which) -> None:
        self._tracer = tracer
        most = tracer.most_steps
        self._open = isinstance(which, slice) and which.stop is None
        if isinstance(which, int):
            which = [which]
        self._steps = list(range(most)[which]) if isinstance(which, slice) else [_checked(n, most) for n in which]
        self._asked = _asked(which, most) if isinstance(which, slice) else len(self._steps)
        self._lists: StepLists | None = None  # while the body of a `with` runs

    def __iter__(self) -> Iterator[int]:
        tracer, before = self._tracer, self._tracer.step
        try:
            for n, step in enumerate(self._steps):
                if not tracer.reaches(step):
                    if not self._open:
                        warnings.warn(
                            f"the text ended: {n} of {self._asked} steps of this loop were made", stacklevel=2
                        )
                    return
                tracer.step = step
                yield step
        finally:
            tracer.step = before
        if self._asked > len(self._steps):
            warnings.warn(self._too_few(), stacklevel=2)

    def _too_few(self) -> str:
        most = self._tracer.most_steps
        there = f"the generation has {most} steps"
        if all(invoke.decoder is None for invoke in self._tracer.scope):
            there = "only a generation has more than one, model.generate(prompt, max_new_tokens=...)"
        return f"{len(self._steps)} of {self._asked} steps of this loop were made: {there}"

    def __enter__(self) -> "int | AllAtOnce":
        tracer = self._tracer
        if not self._steps:
            raise TraceError(f"this names no step: the generation has {tracer.most_steps}")
        if self._asked > len(self._steps):
            warnings.warn(self._too_few(), stacklevel=2)
        self._before, tracer.step = tracer.step, self._steps[0]
        if len(self._steps) == 1 and not tracer.reaches(self._steps[0]):
            tracer.step = self._before
            raise TraceError(f"step {self._steps[0]} is never made: the text ends before")
        if len(self._steps) > 1:
            if tracer.recorder.tape is not None:
                raise TraceError("tracer.iter over several steps inside another one's `with`")
            tracer.recorder.tape = Tape(
                "a `with tracer.iter[...]` of several steps; write `for step in tracer.iter[...]`",
                start=len(tracer.recorder.nodes),
            )
            self._lists = StepLists(tracer.recorder.appended, len(tracer.recorder.nodes))
        return self._steps[0] if len(self._steps) == 1 else AllAtOnce(self._steps)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        tracer = self._tracer
        tape, tracer.recorder.tape = tracer.recorder.tape, None
        lists, self._lists = self._lists, None  # the user's, who may keep this object
        try:
            if kind is None and tape is not None and lists is not None:
                lists.end_first()
                self._play(tape, lists)
        finally:
            tracer.step = self._before

    def _play(self, tape: Tape, lists: StepLists) -> None:
        """Do at the further steps what was done at the first."""
        for step in self._steps[1:]:
            self._tracer.step = step
            player = self._player()
            tape.play(player)
            for values in tape.kept:
                values.append(player.value(values.first._node).save())
            lists.step(player)

    def _player(self) -> Player:
        tracer, first = self._tracer, self._steps[0]
        invokes = tuple(tracer._scope)
        return Player(
            tracer.recorder,
            read=lambda hook, step: tracer.read(hook, ahead=step - first),
            put=lambda hook, step, value: tracer.put(hook, value, ahead=step - first),
            watch=lambda module, values, step: note(tracer, module, values, invokes, tracer.step, by_edit=False),
            where=f"at step {tracer.step} of the generation",
        )


def _checked(step: int, most: int) -> int:
    number = step + most if step < 0 else step
    if not 0 <= number < most:
        raise TraceError(f"step {step}: the generation has {most} steps, 0 to {most - 1}")
    return number


def _asked(which: slice, most: int) -> int:
    """How many steps a slice names, be they there or not; without an end, one at least."""
    if which.stop is None:
        return max(1, len(range(most)[which]))
    return len(range(max(most, which.stop))[which])
