"""Steps in an edit, which is recorded before anybody knows how many there are."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from nnzoo.tracing.edits import Part
from nnzoo.tracing.graph import Line, Node
from nnzoo.tracing.lengths import Length
from nnzoo.tracing.lines import user_line
from nnzoo.tracing.recorder import TraceError
from nnzoo.tracing.steps import Which
from nnzoo.tracing.tape import Do, Entry, Read, Tape, Watch, Write

if TYPE_CHECKING:
    from nnzoo.tracing.editing import EditTracer


APART = 10_000  # the step as which a loop's body is recorded: no value of it can be taken for one outside


class EditIndex:
    """`tracer.iter` in an edit: index it with a step, a slice or a list of steps."""

    def __init__(self, tracer: "EditTracer") -> None:
        self._tracer = tracer

    def __getitem__(self, which: Which) -> "EditSteps":
        return EditSteps(self._tracer, which)

    def __iter__(self) -> Iterator[Any]:
        return iter(self[:])


class EditSteps:
    """Some steps of the generations to come.

    `with tracer.iter[...]`, and a `for` without an end, run their body once for all steps. A `for` over steps that are
    counted, `tracer.iter[1:4]`, runs it for each.
    """

    def __init__(self, tracer: "EditTracer", which: Which) -> None:
        self._tracer = tracer
        self._is_open = isinstance(which, slice) and which.stop is None
        if isinstance(which, int):
            which = [which]
        bounds = (which.start, which.stop, which.step) if isinstance(which, slice) else which
        if any(n is not None and n < 0 for n in bounds):
            raise TraceError("an edit counts steps from the first: how many there will be, nobody knows yet")
        self._steps: Sequence[int] = range(sys.maxsize)[which] if isinstance(which, slice) else [*which]

    def __iter__(self) -> Iterator[Any]:
        return self._every_step() if self._is_open else self._each_step()

    def _each_step(self) -> Iterator[int]:
        tracer, before = self._tracer, self._tracer.step
        self._check_not_inside()
        try:
            for step in self._steps:
                tracer.step = step
                yield step
        finally:
            tracer.step = before

    def _every_step(self) -> Iterator["AnyStep"]:
        """The body runs twice: if its rounds differ, they are not what holds at every step."""
        line = user_line()
        tapes = []
        for _ in range(2):
            tapes.append(self._begin())
            self._tracer.left_early.append(str(line))
            try:
                yield AnyStep()
            finally:
                self._end()
            self._tracer.left_early.pop()
        first, second = tapes
        at = APART * self._tracer.n_loops
        check_same(first, second, line)
        self._keep(first, at - APART)

    def __enter__(self) -> Any:
        self._tape = self._begin()
        return AnyStep()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()
        self._keep(self._tape, APART * self._tracer.n_loops)

    # --- the tape of a loop --------------------------------------------------------------------------------------

    def _check_not_inside(self) -> None:
        if self._tracer.in_loop:
            raise TraceError("tracer.iter inside another one's body, in an edit")

    def _begin(self) -> Tape:
        tracer = self._tracer
        self._check_not_inside()
        if not self._steps:
            raise TraceError("this names no step")
        tracer.n_loops += 1
        self._before, tracer.in_loop = tracer.step, True
        tracer.step = APART * tracer.n_loops
        return tracer.new_tape()

    def _end(self) -> None:
        self._tracer.step, self._tracer.in_loop = self._before, False

    def _keep(self, tape: Tape, at: int) -> None:
        self._tracer.parts.append(Part(tape, self._steps, at))
        self._tracer.record()


class AnyStep:
    """Stands for the number of a step that is not known when an edit is recorded."""

    def _refuse(self, *others: Any) -> NoReturn:
        raise TraceError(
            "the body of an edit's open loop is recorded once, for all steps, so a step's number is not known in it. "
            "Where it matters, count the steps: for step in tracer.iter[0:10]"
        )

    __index__ = __int__ = __float__ = __bool__ = __hash__ = _refuse
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __mod__ = __floordiv__ = __truediv__ = _refuse

    def __repr__(self) -> str:
        return "<any step>"


def check_same(first: Tape, second: Tape, line: Line) -> None:
    """Raise TraceError where two rounds of a loop's body did not do the same."""
    rounds = Rounds()
    if len(first.entries) == len(second.entries) and all(map(rounds.same, first.entries, second.entries)):
        return
    raise TraceError(
        f"the loop over steps at {line} does not do the same in each round, and an edit's open loop is what holds at "
        "every step. It may not carry values from round to round, nor draw numbers (torch.randn_like(value) draws when "
        "the trace runs); where a round's number matters, count the steps: tracer.iter[0:10]"
    )


class Rounds:
    """Two rounds of a loop's body, compared: which nodes correspond."""

    def __init__(self) -> None:
        self._first_of: dict[Any, Any] = {}  # of the second round -> of the first
        self._of_first: set[Any] = set()

    def same(self, one: Entry, two: Entry) -> bool:
        """Whether the next entry of both is the same."""
        same = type(one) is type(two) and all(
            self._equal(getattr(one, name), getattr(two, name)) for name in COMPARED[type(one)]
        )
        if not isinstance(one, Do) and not isinstance(two, Do):
            same = same and one.step + APART == two.step
        old = set(one.results) & set(two.results)  # edited in place: recorded before the loop
        self._of_first.update(set(one.results) - old)
        self._first_of.update(zip(two.results, one.results, strict=False))
        return same and len(one.results) == len(two.results)

    def _equal(self, one: Any, two: Any) -> bool:
        if isinstance(two, Node):
            return two not in self._of_first and self._first_of.get(two, two) is one
        if isinstance(two, Length):
            return isinstance(one, Length) and one.now(Samples({})) == two.now(Samples(self._first_of))
        if isinstance(two, Tensor):
            return one is two or (isinstance(one, Tensor) and one.shape == two.shape and torch.equal(one, two))
        if isinstance(two, (tuple, list)):
            return type(one) is type(two) and len(one) == len(two) and all(map(self._equal, one, two))
        if isinstance(two, dict):
            return isinstance(one, dict) and [*one] == [*two] and all(self._equal(one[name], two[name]) for name in two)
        if isinstance(two, slice):
            return isinstance(one, slice) and all(self._equal(getattr(one, x), getattr(two, x)) for x in SLICE)
        if hasattr(two, "__code__"):
            return one is two or (
                getattr(one, "__code__", None) is two.__code__ and self._equal(*map(_cells, (one, two)))
            )
        return bool(one == two)


class Samples(Mapping):
    """A number for the key of any size; a size of the second round has that of the first."""

    def __init__(self, first_of: Mapping[Any, Any]) -> None:
        self._first_of = first_of

    def __getitem__(self, key: Any) -> int:
        return 1009 + hash(self._first_of.get(key, key)) % 7919

    def __iter__(self) -> Iterator[Any]:
        return iter(self._first_of)

    def __len__(self) -> int:
        return len(self._first_of)


SLICE = ("start", "stop", "step")
COMPARED: dict[type, tuple[str, ...]] = {
    Read: ("hook",),
    Write: ("hook", "value"),
    Do: ("fn", "args", "kwargs", "shapes", "modes"),
    Watch: ("module", "seen"),
}


def _cells(function: Callable) -> list[Any]:
    """What a function of a body closes over."""
    return [cell.cell_contents for cell in function.__closure__ or ()]
