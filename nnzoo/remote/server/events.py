"""What happens to a job, for those who watch: numbered events, of which each watcher remembers the last it saw."""

import asyncio
import re
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

MOST_LOG_LINES = 100
LATEST_ONLY = ("status", "progress")


@dataclass(frozen=True)
class Event:
    number: int
    kind: str  # "status", "progress", "log" or "end"
    data: dict[str, Any]


class Events:
    """A job's events so far. Of status and progress only the latest is kept: a slow watcher costs no memory.

    >>> events = Events()
    >>> for layer in range(3):
    ...     events.add("progress", {"layer": layer})
    >>> [(event.number, event.data) for event in events.since(0)]
    [(3, {'layer': 2})]
    """

    era = secrets.token_hex(3)  # of this process: numbers start again with it

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._number = 0
        self._news = asyncio.Event()
        self.watchers = 0
        self.closed = False

    def add(self, kind: str, data: dict[str, Any]) -> None:
        self._number += 1
        same = [event for event in self._events if event.kind == kind]
        superseded = same if kind in LATEST_ONLY else same[: -MOST_LOG_LINES + 1]
        self._events = [event for event in self._events if event not in superseded]
        self._events.append(Event(self._number, kind, data))
        self._wake()

    def close(self) -> None:
        """Let watchers go: nothing more will come."""
        self.closed = True
        self._wake()

    def since(self, number: int) -> list[Event]:
        return [event for event in self._events if event.number > number]

    async def watch(self, last_seen: str) -> AsyncIterator[Event]:
        """Events after the one whose id is `last_seen`, as they come, until nothing more will."""
        era, _, number = last_seen.rpartition("-")
        seen = int(number) if era == self.era and re.fullmatch("[0-9]{1,18}", number) else 0
        self.watchers += 1
        try:
            while True:
                for event in self.since(seen):
                    yield event
                    seen = event.number
                if not self.since(seen):
                    if self.closed:
                        return
                    await self._news.wait()
        finally:
            self.watchers -= 1

    def id(self, event: Event) -> str:
        return f"{self.era}-{event.number}"

    def _wake(self) -> None:
        self._news.set()  # wakes those who wait now
        self._news.clear()
