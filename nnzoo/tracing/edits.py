"""Edits: what every trace of a model does first.

The body of `with model.edit() as edited: ...` is recorded once, on tapes, for a prompt of a nominal length; each invoke
of a later trace plays them at its beginning.
"""

from collections import ChainMap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nnzoo.envoys.attached import note
from nnzoo.tracing.graph import Invoke, Line
from nnzoo.tracing.recorder import TraceError
from nnzoo.tracing.tape import Do, Entry, Player, Tape

if TYPE_CHECKING:
    from nnzoo.tracing.tracer import Tracer


@dataclass(frozen=True, eq=False)
class Part:
    """Some entries of an edit; with `steps`, they hold at each of these, and were recorded as of step `at`."""

    tape: Tape
    steps: Sequence[int] | None = None
    at: int = 0

    def shifts(self, most: int) -> Iterator[int]:
        """By how many steps what was recorded is to be moved, for a generation of so many steps."""
        if self.steps is None:
            yield 0
            return
        for step in self.steps:
            if step < most:
                yield step - self.at
            elif isinstance(self.steps, range):
                return  # an open range has no end of its own


@dataclass(frozen=True, eq=False)
class Edit:
    """What the body of an edit did."""

    parts: tuple[Part, ...]
    custom: Line | None  # an autograd.Function in it, whose backward was not recorded

    def check(self) -> None:
        """Raise TraceError where a value of a loop over steps is used outside of it: it is another one at each step."""
        known: set[object] = set()
        for part in self.parts:
            here = known if part.steps is None else set(known)
            for entry in part.tape.entries:
                if not here.issuperset(entry.uses):
                    raise TraceError(outside_of_its_loop(entry.line))
                here.update(entry.results)


def outside_of_its_loop(line: Line) -> str:
    """What is wrong with a loop's value elsewhere."""
    return (
        f"a value of a loop over steps is used outside of the loop, at {line}; in an edit, a loop's values are of the "
        "step that comes by, and end with it"
    )


class Playback:
    """An edit being done in one invoke: at once for the steps that there are, later for those that are yet to come."""

    def __init__(self, edit: Edit, tracer: "Tracer", invoke: Invoke) -> None:
        self._edit, self._tracer, self._invoke = edit, tracer, invoke
        self._known: dict[Any, Any] = {}  # of what the edit does outside of loops
        self._known_at: dict[tuple[int, int], dict[Any, Any]] = {}  # of its loops, by part and shift
        self._done: set[tuple[int, int, int]] = set()  # part, shift, entry
        if edit.custom is not None:
            tracer.recorder.custom = edit.custom
        self.go_on()

    def go_on(self) -> None:
        """Do what was not done yet, and can be done now."""
        decoder = self._invoke.decoder
        self._most = 1 if decoder is None else decoder.options.max_new_tokens
        for number, part in enumerate(self._edit.parts):
            for shift in part.shifts(self._most):
                self._play(number, part, shift)

    def _play(self, number: int, part: Part, shift: int) -> None:
        own = self._known if part.steps is None else self._known_at.setdefault((number, shift), {})
        player = self._player(shift, ChainMap(own, self._known))
        out_of_reach: set[object] = set()
        for n, entry in enumerate(part.tape.entries):
            if (number, shift, n) in self._done:
                continue
            if self._is_late(entry, shift) or not out_of_reach.isdisjoint(entry.uses):
                out_of_reach.update(entry.results)
                continue
            player.play(entry)
            self._done.add((number, shift, n))

    def _is_late(self, entry: Entry, shift: int) -> bool:
        return not isinstance(entry, Do) and entry.step + shift >= self._most

    def _player(self, shift: int, known: ChainMap[Any, Any]) -> Player:
        tracer, here = self._tracer, [self._invoke]
        return Player(
            tracer.recorder,
            read=lambda hook, step: tracer._places.read(here, hook, step + shift),
            put=lambda hook, step, value: tracer._places.put(here, hook, step + shift, value),
            watch=lambda module, values, step: note(tracer, module, values, tuple(here), step + shift, by_edit=True),
            where="in an edit of the model",
            new=known,
        )
