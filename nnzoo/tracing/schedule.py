"""In which batches prompts go through the model, and where a batch waits for another.

A `Tie` says that one prompt must have come to a stage before another leaves one of its own. As long as all ties point
one way a batch goes through at once, after those it needs. Where they do not, or where there are more rows than a batch
may have, batches take turns: each goes as far as it can.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from nnzoo.tracing.graph import BEYOND, Invoke, Stage

START = Stage(-1, 0)  # nothing has run


class Tie(NamedTuple):
    """`first` comes to a stage before `second` leaves one."""

    first: Invoke
    comes_to: Stage
    second: Invoke
    leaves: Stage


class Standing(NamedTuple):
    """A batch that has come to a stage and waits there."""

    invokes: list[Invoke]
    reached: Stage


class Leg(NamedTuple):
    """A batch goes on until it has come to a stage, where it must wait, or BEYOND."""

    invokes: list[Invoke]
    until: Stage


def schedule(
    invokes: list[Invoke], ties: Iterable[Tie], most: int | None = None, standing: Sequence[Standing] = ()
) -> list[Leg] | None:
    """The legs of all passes, in order; None: it is impossible with these batches standing where they do."""
    ties = set(ties)
    fixed = [one.invokes for one in standing]
    reached = [one.reached for one in standing]
    known = {i for batch in fixed for i in batch}
    free = [i for i in invokes if i not in known]
    levels = _levels(free, ties)
    if levels is not None:
        parts = [part for level in levels for part in _parts(level, most)]
        legs = take_turns([*fixed, *parts], ties, reached)
        if legs is not None or not ties:
            return legs
    return take_turns(_batches(fixed, free, ties, reached, most), ties, reached)


def _levels(invokes: list[Invoke], ties: set[Tie]) -> list[list[Invoke]] | None:
    """As few batches as possible of which each needs only earlier ones; None: there are no such."""
    number = dict.fromkeys(invokes, 0)
    apart: dict[tuple[Invoke, Invoke], bool] = {}
    for first, comes_to, second, leaves in ties:
        if first in number and second in number:
            apart[first, second] = apart.get((first, second), False) or comes_to > leaves
    moved = True
    while moved:
        moved = False
        for (first, second), strict in apart.items():
            if number[second] < number[first] + strict:
                number[second], moved = number[first] + strict, True
                if number[second] == len(number):
                    return None
    return [[i for i, n in number.items() if n == level] for level in sorted(set(number.values()))]


def _parts(invokes: list[Invoke], most: int | None) -> list[list[Invoke]]:
    """A batch split into several of at most `most` rows."""
    parts: list[list[Invoke]] = []
    for one in invokes:
        if parts and _fit([*parts[-1], one], most):
            parts[-1].append(one)
        else:
            parts.append([one])
    return parts


def _fit(invokes: list[Invoke], most: int | None) -> bool:
    return most is None or sum(i.rows for i in invokes) <= most


def _batches(
    fixed: list[list[Invoke]], free: list[Invoke], ties: set[Tie], reached: list[Stage], most: int | None
) -> list[list[Invoke]]:
    """Prompts put into a batch wherever it leaves a way for all."""
    batches: list[list[Invoke]] = []
    for k, one in enumerate(free):
        later = [[i] for i in free[k + 1 :]]
        for batch in batches:
            batch.append(one)
            if _fit(batch, most) and take_turns([*fixed, *batches, *later], ties, reached) is not None:
                break
            batch.pop()
        else:
            batches.append([one])
    return [*fixed, *batches]


def take_turns(batches: list[list[Invoke]], ties: Iterable[Tie], reached: Sequence[Stage] = ()) -> list[Leg] | None:
    """The legs of batches, of which the first stand where they have `reached`; None where none of them can go on."""
    turns = [_Turn(n, batch, reached[n] if n < len(reached) else START) for n, batch in enumerate(batches)]
    of = {i: turn for turn in turns for i in turn.invokes}
    for first, comes_to, second, leaves in ties:
        before, after = of[first], of[second]
        if leaves < after.reached and comes_to > before.reached:
            return None  # it has left that stage without what it needs
        if before is not after:
            after.waits.append((leaves, before.number, comes_to))
        elif comes_to > leaves:
            return None
    for turn in turns:
        turn.waits.sort(reverse=True)
    return _legs(turns)


def _legs(turns: list["_Turn"]) -> list[Leg] | None:
    legs: list[Leg] = []
    ready, halfway = deque(turns), deque[_Turn]()  # those that may go through to the end come first
    while ready or halfway:
        turn = (ready or halfway).popleft()
        until = turn.next_wait(turns)
        if until > turn.reached and (until == BEYOND or not ready):
            legs.append(Leg(turn.invokes, until))
            turn.reached = until
            ready.extend(turn.waiting)
            turn.waiting = []
        elif until > turn.reached:
            halfway.append(turn)
    return legs if all(turn.reached == BEYOND for turn in turns) else None


class _Turn:
    """How far a batch has come, and what it waits for."""

    def __init__(self, number: int, invokes: list[Invoke], reached: Stage) -> None:
        self.number, self.invokes, self.reached = number, invokes, reached
        self.waits: list[tuple[Stage, int, Stage]] = []  # (stage it leaves, batch, stage that one comes to), last first
        self.waiting: list[_Turn] = []  # who can perhaps go on when this one has

    def next_wait(self, turns: list["_Turn"]) -> Stage:
        """How far it can go now."""
        while self.waits:
            leaves, number, comes_to = self.waits[-1]
            if turns[number].reached < comes_to:
                turns[number].waiting.append(self)
                return leaves
            self.waits.pop()
        return BEYOND
