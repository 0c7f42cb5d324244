"""What one key may have at a time: jobs that wait or run, bytes of theirs, jobs a minute, requests under way."""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nnzoo.remote.server.refusals import Refused


class Quotas:
    """The shares of all keys; Refused, status 429, where one has had its own.

    >>> quotas = Quotas(jobs=1, size=100, per_minute=10, requests=5)
    >>> quotas.check("me")
    >>> quotas.job("me", +1)
    >>> quotas.check("me")
    Traceback (most recent call last):
    ...
    nnzoo.remote.server.refusals.Refused: 1 jobs of this key wait or run, and no more than 1 may
    """

    def __init__(
        self, *, jobs: int, size: int, per_minute: int, requests: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most_jobs, self._most_bytes, self._per_minute, self._clock = jobs, size, per_minute, clock
        self._most_requests = requests
        self._requests: Counter[str] = Counter()
        self._jobs: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._sent: dict[str, deque[float]] = {}

    def check(self, owner: str) -> None:
        """Whether one more job may come."""
        if self._jobs[owner] >= self._most_jobs:
            raise _too_much(
                f"{self._jobs[owner]} jobs of this key wait or run, and no more than {self._most_jobs} may", 1.0
            )
        sent = self._recent(owner)
        if len(sent) >= self._per_minute:
            wait = 60 - (self._clock() - sent[0])
            raise _too_much(f"this key may send {self._per_minute} jobs a minute; the next in {wait:.0f} seconds", wait)

    def job(self, owner: str, change: int) -> None:
        """A job of an owner came (+1) or ended (-1)."""
        _add(self._jobs, owner, change)

    def sent(self, owner: str) -> None:
        """Count a job against those of the minute."""
        self._sent.setdefault(owner, deque()).append(self._clock())

    def hold(self, owner: str, size: int, *, always: bool = False) -> None:
        """Count so many bytes more (or fewer, where negative), if there is room for them, or `always`."""
        if size > 0 and not always and self._bytes[owner] + size > self._most_bytes:
            raise _too_much(f"requests of this key that wait or run may have {self._most_bytes} bytes together", 1.0)
        _add(self._bytes, owner, size)

    @contextmanager
    def request(self, owner: str) -> Iterator[None]:
        """Inside the `with`, a request of an owner is under way: an upload, a wait, events, an answer that is read."""
        if self._requests[owner] >= self._most_requests:
            raise _too_much(f"{self._most_requests} requests of this key are under way, and no more may be", 1.0)
        _add(self._requests, owner, +1)
        try:
            yield
        finally:
            _add(self._requests, owner, -1)

    def _recent(self, owner: str) -> deque[float]:
        sent = self._sent.get(owner, deque())
        while sent and self._clock() - sent[0] > 60:
            sent.popleft()
        return sent

    def sweep(self) -> None:
        """Forget those who were not seen for a minute."""
        self._sent = {owner: sent for owner in list(self._sent) if (sent := self._recent(owner))}


def _add(counter: Counter[str], owner: str, change: int) -> None:
    counter[owner] += change
    if not counter[owner]:
        del counter[owner]


def _too_much(message: str, wait: float) -> Refused:
    return Refused(429, "limit", message, {"Retry-After": str(max(1, round(wait)))})
