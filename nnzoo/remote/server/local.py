"""Workers that are processes of this machine: started, watched, killed, and started again."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from nnzoo.remote.limits import MB, Limits
from nnzoo.remote.server.frames import Frame, Kind, packed, packed_json, read
from nnzoo.remote.server.workers import Report, Staff, WorkerLost

log = logging.getLogger(__name__)
RUNNER = "nnzoo.remote.running:answers"
BETWEEN_LOOKS = 0.05  # seconds, at the memory of a busy worker
LONGEST_PAUSE = 60.0  # seconds, between starts that fail
FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


class Process:
    """One worker process, from its start to its end."""

    def __init__(self, workers: "LocalWorkers", model: str, process: asyncio.subprocess.Process) -> None:
        self._workers, self.model, self.process = workers, model, process
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter
        self.too_large = False
        self._batch = 0

    async def run(self, requests: Sequence[bytes], report: Report) -> AsyncIterator[tuple[int, bytes]]:
        self._batch += 1
        watch = asyncio.create_task(self._watch())
        try:
            self.writer.writelines(packed(Kind.RUN, len(requests)))
            for request in requests:
                self.writer.writelines(packed(Kind.REQUEST, data=request))
                await self.writer.drain()
            left = len(requests)
            while left:
                frame = await self.read()
                if frame.kind == Kind.PROGRESS:
                    report(frame.number, frame.json)
                else:
                    left -= 1
                    if not left:
                        self._workers.is_idle(self)
                    yield frame.number, frame.data
        except (OSError, EOFError, ValueError) as error:
            raise await self._lost(error) from error
        finally:
            watch.cancel()

    def cancel(self, number: int) -> None:
        self.writer.writelines(packed(Kind.CANCEL, number, str(self._batch).encode()))

    async def read(self) -> Frame:
        return await read(self.reader, self._workers.most_bytes)

    async def _watch(self) -> None:
        """Kill the process once its memory, that of mapped files left out, is more than it may have."""
        while (size := private_memory(self.process.pid)) is not None:
            if size > self._workers.memory:
                self.too_large = True
                return self.kill()
            await asyncio.sleep(BETWEEN_LOOKS)

    async def _lost(self, error: Exception) -> WorkerLost:
        if isinstance(error, ValueError):
            self.kill()
            return WorkerLost("limit", f"the answer is too large: {error}", by_job=True)
        code = await self.process.wait()
        if self.too_large:
            most = self._workers.memory / 2**20
            return WorkerLost(
                "limit", f"more than {most:.0f} MiB of memory were needed, and are not given", by_job=True
            )
        if -code in FROM_OUTSIDE:
            return WorkerLost("worker", f"the worker was ended by {signal.Signals(-code).name}", by_job=False)
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
        return WorkerLost("worker", f"the worker ended {how}", by_job=True)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()


class LocalWorkers:
    """So many processes for each model. Each has `memory` of its own, a share of the machine's if nobody says."""

    def __init__(self, models: Sequence[str], each: int, *, limits: Limits, memory: int | None = None) -> None:
        self._models, self._each, self._limits = models, each, limits
        self.memory = memory or int(0.9 * machine_memory() / (each * len(models)))
        self.most_bytes = limits.result_bytes + 64 * MB  # with what stands around its tensors
        self._idle: dict[str, list[Process]] = {model: [] for model in models}
        self._alive: dict[str, set[Process]] = {model: set() for model in models}  # those that were ready once
        self._restarts = dict.fromkeys(models, 0)
        self._useless = dict.fromkeys(models, 0)
        self._keepers: list[asyncio.Task[None]] = []
        self._changed: Callable[[str], None] = lambda model: None

    def start(self, changed: Callable[[str], None]) -> None:
        self._changed = changed
        self._keepers = [asyncio.create_task(self._keep(model)) for model in self._models for _ in range(self._each)]

    def take(self, model: str) -> Process | None:
        return self._idle[model].pop() if self._idle[model] else None

    def staff(self, model: str) -> Staff:
        idle, alive = len(self._idle[model]), len(self._alive[model])
        return Staff(idle, alive - idle, self._each - alive, self._restarts[model], self._useless[model])

    def is_idle(self, worker: Process) -> None:
        if worker in self._alive[worker.model]:
            self._idle[worker.model].append(worker)
            self._changed(worker.model)

    async def stop(self) -> None:
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)

    # --- one place, and the processes that fill it one after the other -----------------------------------------------

    async def _keep(self, model: str) -> None:
        while True:
            worker = await self._spawn(model)
            try:
                await self._live(worker)
            finally:
                worker.kill()
                await worker.process.wait()
                worker.writer.close()
            self._restarts[model] += 1
            if self._useless[model]:
                await asyncio.sleep(min(0.5 * 2 ** self._useless[model], LONGEST_PAUSE))

    async def _live(self, worker: Process) -> None:
        """From the start of a process to its end."""
        model = worker.model
        begun = time.monotonic()
        if not await self._is_ready(worker):
            self._useless[model] += 1
            self._changed(model)
            return
        log.info(
            "a worker of %s is ready after %.1f s (process %d)", model, time.monotonic() - begun, worker.process.pid
        )
        self._useless[model] = 0
        self._alive[model].add(worker)
        self.is_idle(worker)
        try:
            await worker.process.wait()
            log.warning(
                "a worker of %s ended (process %d, status %s)", model, worker.process.pid, worker.process.returncode
            )
        finally:
            self._alive[model].discard(worker)
            if worker in self._idle[model]:
                self._idle[model].remove(worker)
            self._changed(model)

    async def _spawn(self, model: str) -> Process:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "nnzoo.remote.server.worker", str(theirs.fileno())]
        with theirs:  # in a session of its own: Ctrl-C is for the server, which then ends its workers
            process = await asyncio.create_subprocess_exec(
                *command, pass_fds=[theirs.fileno()], stdin=asyncio.subprocess.DEVNULL, start_new_session=True
            )
        worker = Process(self, model, process)
        worker.reader, worker.writer = await asyncio.open_connection(sock=ours)
        return worker

    async def _is_ready(self, worker: Process) -> bool:
        threads = max(1, (os.cpu_count() or 1) // (self._each * len(self._models)))
        settings = {"model": worker.model, "threads": threads, "runner": RUNNER, "limits": asdict(self._limits)}
        worker.writer.writelines(packed_json(Kind.SETTINGS, settings))
        try:
            frame = await worker.read()
        except (OSError, EOFError):
            log.error("a worker of %s ended while it was started", worker.model)
            return False
        if frame.kind == Kind.USELESS:
            log.error("a worker of %s cannot be started: %s", worker.model, frame.data.decode(errors="replace"))
        return frame.kind == Kind.READY


def machine_memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def private_memory(process: int) -> int | None:
    """Bytes of memory that a process has and no file backs; None where nobody says, or it is gone."""
    try:
        _, resident, shared, *_ = Path(f"/proc/{process}/statm").read_text().split()
    except OSError:  # no Linux
        return None
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
