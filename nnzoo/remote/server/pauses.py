"""How long the jobs of a key wait when some of them ended their workers: others need what is left meanwhile."""

import time
from collections import deque
from collections.abc import Callable

FREE = 2  # workers that a key's jobs may end within the time that is remembered
REMEMBERED = 600.0  # seconds
FIRST, LONGEST = 10.0, 300.0  # seconds of a pause, which doubles from one to the next


class Pauses:
    """Whose jobs have to wait, and how long.

    >>> pauses = Pauses(clock=lambda: 0.0)
    >>> [pauses.lost_a_worker("me") for _ in range(5)]
    [0.0, 0.0, 10.0, 20.0, 40.0]
    >>> pauses.left("me"), pauses.left("you")
    (40.0, 0.0)
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lost: dict[str, deque[float]] = {}
        self._until: dict[str, float] = {}

    def lost_a_worker(self, owner: str) -> float:
        """Note that a job of an owner ended its worker; gives the seconds that its others wait now."""
        lost = self._lost.setdefault(owner, deque())
        lost.append(self._clock())
        self._forget(owner)
        pause = 0.0 if len(lost) <= FREE else min(FIRST * 2 ** (len(lost) - FREE - 1), LONGEST)
        self._until[owner] = self._clock() + pause
        return pause

    def left(self, owner: str) -> float:
        """Seconds until jobs of an owner may run."""
        return max(0.0, self._until.get(owner, 0.0) - self._clock())

    def may_run(self, owner: str) -> bool:
        return not self.left(owner)

    def sweep(self) -> None:
        """Forget those who have long ended no worker."""
        for owner in list(self._lost):
            self._forget(owner)
            if not self._lost[owner]:
                del self._lost[owner], self._until[owner]

    def _forget(self, owner: str) -> None:
        while self._lost[owner] and self._clock() - self._lost[owner][0] > REMEMBERED:
            self._lost[owner].popleft()
