"""The queue of one model: who sent little is not kept waiting by who sent much."""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, zip_longest

from nnzoo.remote.server.job import Job


class Waiting:
    """Jobs in the order in which they will run: one of each owner, then the second of each, and so on."""

    def __init__(self) -> None:
        self._owners: dict[str, deque[Job]] = {}  # in the order of their turns

    def __len__(self) -> int:
        return sum(map(len, self._owners.values()))

    def __iter__(self) -> Iterator[Job]:
        rounds = zip_longest(*self._owners.values())
        return (job for job in chain.from_iterable(rounds) if job is not None)

    def add(self, job: Job, *, first: bool = False) -> None:
        """Let a job wait, behind those of its owner, or before them."""
        jobs = self._owners.setdefault(job.owner, deque())
        (jobs.appendleft if first else jobs.append)(job)

    def remove(self, job: Job) -> None:
        jobs = self._owners[job.owner]
        jobs.remove(job)
        if not jobs:
            del self._owners[job.owner]

    def take(self, most: int, most_bytes: int, may_run: Callable[[str], bool] = lambda owner: True) -> list[Job]:
        """The next jobs of owners that have no pause, to be run together: several if none of them has to be alone."""
        taken: list[Job] = []
        for job in self:
            if not may_run(job.owner):
                continue
            fits = not job.alone and len(taken) < most and sum(j.size for j in taken) + job.size <= most_bytes
            if taken and not fits:
                break
            taken.append(job)
            if job.alone:
                break
        for job in taken:
            self.remove(job)
            if job.owner in self._owners:  # had a turn: the others come first now
                self._owners[job.owner] = self._owners.pop(job.owner)
        return taken

    def any(self, may_run: Callable[[str], bool]) -> bool:
        """Whether somebody waits that has no pause."""
        return any(map(may_run, self._owners))

    def ahead(self, job: Job) -> int:
        """How many jobs run before this one, as things are."""
        own = list(self._owners)
        place, turn = self._owners[job.owner].index(job), own.index(job.owner)
        others = ((i, jobs) for i, jobs in enumerate(self._owners.values()) if i != turn)
        return place + sum(min(len(jobs), place + (i < turn)) for i, jobs in others)
