"""Jobs that have no answer yet, as the server holds them in memory, and what runs several of them."""

import asyncio
from typing import Any

from nnzoo.remote.server.events import Events
from nnzoo.remote.server.store import ENDED, QUEUED, Row
from nnzoo.remote.server.workers import Worker


class Job:
    """One job, from the time it came (or the server started) until it ends."""

    def __init__(self, row: Row) -> None:
        self.id, self.owner, self.model, self.size = row.id, row.owner, row.model, row.size
        self.created, self.attempts = row.created, row.attempts
        self.status = QUEUED
        self.alone = row.attempts > 0  # what was under way when its worker or server ended is joined with no other
        self.progress: dict[str, Any] | None = None
        self.run: Run | None = None
        self.events = Events()
        self.released = asyncio.Event()  # set when it ended, or when nobody should wait for that any more

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED

    def release(self) -> None:
        """Let those go who wait for its end or watch it."""
        self.released.set()
        self.events.close()


class Run:
    """A batch of jobs on one worker."""

    def __init__(self, worker: Worker, batch: list[Job]) -> None:
        self.worker, self.batch = worker, batch
        self.task: asyncio.Task[None] | None = None

    def report(self, number: int, progress: dict[str, Any]) -> None:
        """Note how far a job is."""
        self.batch[number].progress = progress
        self.batch[number].events.add("progress", progress)

    def end(self) -> None:
        """Stop it, if it did not end by itself; its worker is killed."""
        if self.task is not None:
            self.task.cancel()
