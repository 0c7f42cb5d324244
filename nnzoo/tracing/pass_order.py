"""What the passes of several prompts need of each other.

A value of one prompt may go into any layer of another: the other's pass waits at that layer until the value is there.
Only a circle is impossible, where a place needs what comes later in its own pass, by way of whatever prompts.
"""

from typing import NamedTuple

from nnzoo.tracing.graph import BEYOND, Invoke, Needs, Place, Stage


class Obstacle(NamedTuple):
    """Why a place cannot be given a value: for that a prompt must come to a stage, and before that to another one."""

    source: Invoke
    comes_to: Stage
    first: Stage  # of the place's own prompt, later than the place


class PassOrder:
    """How far prompts' passes must have come before another's leaves a place, as far as has been recorded."""

    def __init__(self) -> None:
        self._after: dict[Invoke, dict[Place, Stage]] = {}  # what comes before a place is left
        self._goes_down = False  # without a value that goes down there is no circle

    def change(self, place: Place, needs: Needs) -> Obstacle | None:
        """From now on a place holds what needs this, and nothing else, unless there is an obstacle."""
        others = []
        for source, stage in needs.items():
            if source is place.invoke:
                if stage > place.stage:
                    return Obstacle(source, stage, stage)
                continue
            down = stage > place.stage
            if (down or self._goes_down) and (first := self._first(place, source, stage)):
                return Obstacle(source, stage, first)
            others.append((source, stage, down))
        if self._after:
            for places in self._after.values():
                places.pop(place, None)
        for source, stage, down in others:
            self._after.setdefault(source, {})[place] = stage
            self._goes_down |= down
        return None

    def leads(self, first: Invoke, second: Invoke) -> bool:
        """Whether something of `second` was made of something of `first`."""
        waiting, seen = [first], {first}
        while waiting:
            for place in self._after.get(waiting.pop(), {}):
                if place.invoke is second:
                    return True
                if place.invoke not in seen:
                    seen.add(place.invoke)
                    waiting.append(place.invoke)
        return False

    def _first(self, start: Place, goal: Invoke, comes_to: Stage) -> Stage | None:
        """A stage after a place, which its own pass must come to before that of `goal` comes to a stage."""
        lowest = {start.invoke: start.stage, goal: comes_to}  # what a prompt leaves only after `start` is left
        waiting: list[tuple[Invoke, Stage, Stage | None]] = [(start.invoke, start.stage, None)]
        while waiting:
            here, left, first = waiting.pop()
            for place, far in self._after.get(here, {}).items():
                if far > left and place.stage < lowest.get(place.invoke, BEYOND):
                    if place.invoke is goal:
                        return first or far
                    lowest[place.invoke] = place.stage
                    waiting.append((place.invoke, place.stage, first or far))
        return None
