"""Which invokes may share a pass of the model, and which must wait for another's.

A value of one prompt may go into any layer of another. If it goes upward, or stays at its place, both prompts run in
one batch; if it goes down, the other prompt runs in a later pass.
"""

from collections.abc import Iterable

from nnzoo.tracing.graph import Invoke


class PassOrder:
    """What has been recorded of the order of passes."""

    def __init__(self) -> None:
        self._after: dict[Invoke, dict[Invoke, bool]] = {}  # {a: {b: True}}: b's pass comes after a's; False: or is it

    def require(self, first: Invoke, second: Invoke, *, apart: bool) -> bool:
        """The pass of `second` is not before that of `first`, and `apart` from it if so asked; False: impossible."""
        known = self._after.setdefault(first, {})
        if second in known and known[second] >= apart:
            return True
        if any(apart or strict for strict in self._ways(second, first)):
            return False
        known[second] = apart
        return True

    def leads(self, first: Invoke, second: Invoke) -> bool:
        """Whether something of `second` was made of something of `first`."""
        return any(True for _ in self._ways(first, second))

    def passes(self, invokes: Iterable[Invoke]) -> list[list[Invoke]]:
        """The invokes of each pass, in the order of the passes, as few as possible."""
        number = dict.fromkeys(invokes, 0)
        moved = True
        while moved:
            moved = False
            for first, seconds in self._after.items():
                for second, apart in seconds.items():
                    if first in number and second in number and number[second] < number[first] + apart:
                        number[second], moved = number[first] + apart, True
        return [[i for i, n in number.items() if n == p] for p in sorted(set(number.values()))]

    def together(self, invokes: list[Invoke], most: int) -> list[list[Invoke]]:
        """A pass split into several of at most `most` rows; invokes that use each other's values stay together."""
        parts: list[list[Invoke]] = []
        for group in self._bound(invokes):
            rows = sum(i.rows for i in group)
            if parts and sum(i.rows for i in parts[-1]) + rows <= most:
                parts[-1] += group
            else:
                parts.append(group)
        return parts

    def _bound(self, invokes: list[Invoke]) -> list[list[Invoke]]:
        """Groups of which none needs a later one."""
        groups: list[list[Invoke]] = []
        left = list(invokes)
        while left:
            reach = {i: {j for j in left if self.leads(i, j)} | {i} for i in left}
            first = min(left, key=lambda i: (sum(i in reach[j] for j in left if j not in reach[i]), i.index))
            group = [j for j in left if j in reach[first] and first in reach[j]]
            groups.append(group)
            left = [i for i in left if i not in group]
        return groups

    def _ways(self, start: Invoke, goal: Invoke) -> Iterable[bool]:
        """For the ways from one invoke to another, whether passes come apart on them."""
        waiting, seen = [(start, False)], {(start, False)}
        while waiting:
            here, apart = waiting.pop()
            for there, strict in self._after.get(here, {}).items():
                state = (there, apart or strict)
                if there is goal:
                    yield state[1]
                if state not in seen:
                    seen.add(state)
                    waiting.append(state)
