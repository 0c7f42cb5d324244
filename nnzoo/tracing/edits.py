"""Edits: what every trace of a model does first.

The body of `with model.edit() as edited: ...` is recorded once, on tapes, for a prompt of a nominal length; each invoke
of a later trace plays them (playback.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from nnzoo.tracing.arguments import operands
from nnzoo.tracing.graph import Line
from nnzoo.tracing.recorder import TraceError
from nnzoo.tracing.tape import Tape


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

    @property
    def constants(self) -> Iterator[Tensor]:
        """The real tensors that it uses."""
        for part in self.parts:
            for entry in part.tape.entries:
                yield from operands(list(vars(entry).values()))[1]

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
