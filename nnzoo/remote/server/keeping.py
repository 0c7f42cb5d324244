"""What all kinds of workers have in common: so many places for each model, and in each one worker after the other."""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Generic, TypeVar

from nnzoo.remote.limits import MB, Limits
from nnzoo.remote.server.frames import Frame, Kind
from nnzoo.remote.server.workers import Report, Staff, WorkerLost

log = logging.getLogger(__name__)
RUNNER = "nnzoo.remote.running:answers"
LONGEST_PAUSE = 60.0  # seconds, between starts that fail


class KeptWorker(ABC):
    """One worker, from its start to its end; what is said to it and by it are the frames of `frames`."""

    def __init__(self, workers: "KeptWorkers", model: str) -> None:
        self._workers, self.model = workers, model
        self.batch = 0  # the number of the batch that was begun last

    async def run(self, requests: Sequence[bytes], report: Report) -> AsyncIterator[tuple[int, bytes | None]]:
        self.batch += 1
        try:
            await self.give(requests)
            left = len(requests)
            while left:
                frame = await self.read()
                if frame.kind == Kind.PROGRESS:
                    report(frame.number, frame.json)
                else:
                    left -= 1
                    if not left:
                        self._workers.is_idle(self)
                    yield frame.number, None if frame.kind == Kind.GIVEN_BACK else frame.data
        except ValueError as error:
            self.kill()
            raise WorkerLost("limit", f"the answer is too large: {error}", by_job=True) from error
        except (OSError, EOFError) as error:
            raise await self.lost(error) from error

    @abstractmethod
    async def ready(self, settings: dict[str, Any]) -> str:
        """Have the model loaded; "" when it is there, else why it cannot be."""

    @abstractmethod
    async def give(self, requests: Sequence[bytes]) -> None:
        """Send a batch. Raises OSError or EOFError where the worker is gone."""

    @abstractmethod
    async def read(self) -> Frame:
        """What it says next. Raises OSError or EOFError where it is gone, ValueError for more than it may say."""

    @abstractmethod
    async def lost(self, error: Exception) -> WorkerLost:
        """Why it is gone."""

    @abstractmethod
    def cancel(self, number: int) -> None: ...

    @abstractmethod
    def kill(self) -> None: ...

    @abstractmethod
    async def ended(self) -> str:
        """Wait until it is gone, and say how it went."""


Kept = TypeVar("Kept", bound=KeptWorker)


class KeptWorkers(ABC, Generic[Kept]):
    """So many workers of each model; in the place of one that ended, another is started."""

    def __init__(self, models: Mapping[str, str], each: int, limits: Limits) -> None:
        self.models, self.each, self.limits = models, each, limits
        self.most_bytes = limits.result_bytes + 64 * MB  # with what stands around its tensors
        self._idle: dict[str, list[Kept]] = {model: [] for model in models}
        self._alive: dict[str, set[Kept]] = {model: set() for model in models}  # those that were ready once
        self._restarts = dict.fromkeys(models, 0)
        self._useless = dict.fromkeys(models, 0)
        self._keepers: list[asyncio.Task[None]] = []
        self._changed: Callable[[str], None] = lambda model: None

    @abstractmethod
    async def spawn(self, model: str) -> Kept:
        """Start a worker, and do not wait until its model is there."""

    @abstractmethod
    def settings(self, model: str) -> dict[str, Any]:
        """What a worker of a model is told: "model", "threads", "device"."""

    def start(self, changed: Callable[[str], None]) -> None:
        self._changed = changed
        self._keepers = [asyncio.create_task(self._keep(model)) for model in self.models for _ in range(self.each)]

    def take(self, model: str) -> Kept | None:
        return self._idle[model].pop() if self._idle[model] else None

    def staff(self, model: str) -> Staff:
        idle, alive = len(self._idle[model]), len(self._alive[model])
        return Staff(idle, alive - idle, self.each - alive, self._restarts[model], self._useless[model])

    def is_idle(self, worker: Any) -> None:
        """Take a worker back that came to the end of a batch, or was given none."""
        if worker in self._alive[worker.model]:
            self._idle[worker.model].append(worker)
            self._changed(worker.model)

    async def stop(self) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    # --- one place, and the workers that fill it one after the other -------------------------------------------------

    async def _keep(self, model: str) -> None:
        while True:
            worker = await self.spawn(model)
            try:
                await self._live(worker)
            finally:
                worker.kill()
                await worker.ended()
            self._restarts[model] += 1
            if self._useless[model]:
                await asyncio.sleep(min(0.5 * 2 ** self._useless[model], LONGEST_PAUSE))

    async def _live(self, worker: Kept) -> None:
        """From the start of a worker to its end."""
        model, begun = worker.model, time.monotonic()
        if reason := await self._start(worker):
            log.error("a worker of %s cannot be started: %s", model, reason)
            self._useless[model] += 1
            self._changed(model)
            return
        log.info("a worker of %s is ready after %.1f s (%s)", model, time.monotonic() - begun, worker)
        self._useless[model] = 0
        self._alive[model].add(worker)
        self.is_idle(worker)
        try:
            how = await worker.ended()
            log.warning("a worker of %s ended (%s): %s", model, worker, how)
        finally:
            self._alive[model].discard(worker)
            if worker in self._idle[model]:
                self._idle[model].remove(worker)
            self._changed(model)

    async def _start(self, worker: Kept) -> str:
        """Why a worker is of no use; "" when it is ready."""
        settings = self.settings(worker.model) | {"runner": RUNNER, "limits": asdict(self.limits)}
        try:
            return await worker.ready(settings)
        except (OSError, EOFError) as error:
            return f"it ended while it was started ({error})" if str(error) else "it ended while it was started"
