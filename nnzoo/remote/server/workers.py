"""Who runs jobs: the seam between the queue and the processes, here or on a cluster, that hold the models."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

Report = Callable[[int, dict[str, Any]], None]  # the number of a request in its batch, and how far it is


class WorkerLost(Exception):
    """A worker ended before it answered. `code` is the answer's; `by_job` says whether what it ran is to blame."""

    def __init__(self, code: str, message: str, *, by_job: bool) -> None:
        super().__init__(message)
        self.code, self.by_job = code, by_job


@dataclass(frozen=True)
class Staff:
    """The workers of one model, by what they do. `useless`: so many starts failed, and none succeeded since."""

    idle: int
    busy: int
    starting: int
    restarts: int
    useless: int

    @property
    def size(self) -> int:
        return self.idle + self.busy + self.starting


@runtime_checkable
class Worker(Protocol):
    """A worker that was taken, to be given one batch."""

    def run(self, requests: Sequence[bytes], report: Report) -> AsyncIterator[tuple[int, bytes | None]]:
        """The answers, each with the number of its request, as they come; afterwards the worker is idle by itself.

        None for a request that is to be run later, since those before it took their time. Raises WorkerLost.
        """

    def cancel(self, number: int) -> None:
        """Ask the worker to come to an end with one request; its answer does not matter."""

    def kill(self) -> None:
        """End the worker, whatever it does; another takes its place by itself."""


@runtime_checkable
class Workers(Protocol):
    """All the workers of a server."""

    def start(self, changed: Callable[[str], None]) -> None:
        """Start every worker; `changed` is called with a model's name whenever one of its workers comes or goes."""

    def take(self, model: str) -> Worker | None:
        """An idle worker of a model, busy from now on; None where there is none."""

    def is_idle(self, worker: Any) -> None:
        """Take a worker back that came to the end of its batch, or was given none."""

    def staff(self, model: str) -> Staff:
        """How many workers a model has."""

    async def stop(self) -> None:
        """Kill every worker, and wait until all are gone."""
