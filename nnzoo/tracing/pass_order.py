"""What the passes of several prompts need of each other.

A value of one prompt may go into any layer of another: the other's pass waits at that layer until the value is there.
Only a circle is impossible, where a place needs what comes later in its own pass, by way of whatever prompts.
"""

from nnzoo.tracing.graph import BEYOND, Invoke, Stage


class PassOrder:
    """What has been recorded of it: how far one prompt's pass must have come before another's leaves a stage."""

    def __init__(self) -> None:
        self._after: dict[Invoke, dict[Invoke, list[tuple[Stage, Stage]]]] = {}  # {a: {b: [(a comes to, b leaves)]}}
        self._goes_down = False  # without a value that goes down there is no circle

    def require(self, first: Invoke, comes_to: Stage, second: Invoke, leaves: Stage) -> Stage | None:
        """`first` comes to a stage before `second` leaves another one.

        What comes back, where that is impossible, is a later stage of `second` which `first` needs to come so far.
        """
        if first is second:
            return comes_to if comes_to > leaves else None
        known = self._after.get(first, {}).get(second, [])
        if any(far >= comes_to and early <= leaves for far, early in known):
            return None
        down = comes_to > leaves
        if (down or self._goes_down) and (obstacle := self._obstacle(first, comes_to, second, leaves)):
            return obstacle
        self._goes_down |= down
        kept = [(far, early) for far, early in known if far > comes_to or early < leaves]
        self._after.setdefault(first, {})[second] = [*kept, (comes_to, leaves)]
        return None

    def leads(self, first: Invoke, second: Invoke) -> bool:
        """Whether something of `second` was made of something of `first`."""
        waiting, seen = [first], {first}
        while waiting:
            for there in self._after.get(waiting.pop(), {}):
                if there is second:
                    return True
                if there not in seen:
                    seen.add(there)
                    waiting.append(there)
        return False

    def _obstacle(self, goal: Invoke, comes_to: Stage, start: Invoke, leaves: Stage) -> Stage | None:
        """A stage after the one that `start` leaves, which it must come to before `goal` comes to its own."""
        lowest = {start: leaves, goal: comes_to}  # the first stage that a prompt leaves only after `start` left its own
        waiting: list[tuple[Invoke, Stage, Stage | None]] = [(start, leaves, None)]
        while waiting:
            here, left, first = waiting.pop()
            for there, pairs in self._after.get(here, {}).items():
                for far, early in pairs:
                    if far > left and early < lowest.get(there, BEYOND):
                        if there is goal:
                            return first or far
                        lowest[there] = early
                        waiting.append((there, early, first or far))
        return None
