"""Workers that are processes of this machine: started, watched, killed, and started again."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nnzoo.remote.limits import Limits
from nnzoo.remote.server.frames import Frame, Kind, packed, packed_json, read
from nnzoo.remote.server.keeping import KeptWorker, KeptWorkers
from nnzoo.remote.server.worker import UNUSABLE
from nnzoo.remote.server.workers import Report, WorkerLost

BETWEEN_LOOKS = 0.05  # seconds, at the memory of a busy worker
# Threads of PyTorch's that wait for each other sleep soon: they share the cores with other workers and the server, and
# a thread that spins keeps away whom it waits for (50 ms of a core per job of a small model, on two busy cores).
PATIENT_THREADS = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}
FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


class Process(KeptWorker):
    """One worker process."""

    def __init__(self, workers: "LocalWorkers", model: str, process: asyncio.subprocess.Process) -> None:
        super().__init__(workers, model)
        self._most_bytes, self._memory = workers.most_bytes, workers.memory
        self.process = process
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter
        self.too_large = False

    def __str__(self) -> str:
        return f"process {self.process.pid}"

    async def ready(self, settings: dict[str, Any]) -> str:
        self.writer.writelines(packed_json(Kind.SETTINGS, settings))
        return (await self.read()).data.decode(errors="replace")

    async def run(self, requests: Sequence[bytes], report: Report) -> AsyncIterator[tuple[int, bytes | None]]:
        watch = asyncio.create_task(self._watch())
        try:
            async for answer in super().run(requests, report):
                yield answer
        finally:
            watch.cancel()

    async def give(self, requests: Sequence[bytes]) -> None:
        self.writer.writelines(packed(Kind.RUN, len(requests)))
        for request in requests:
            self.writer.writelines(packed(Kind.REQUEST, data=request))
            await self.writer.drain()

    async def read(self) -> Frame:
        return await read(self.reader, self._most_bytes)

    def cancel(self, number: int) -> None:
        self.writer.writelines(packed(Kind.CANCEL, number, str(self.batch).encode()))

    async def _watch(self) -> None:
        """Kill the process once its memory, that of mapped files left out, is more than it may have."""
        while (size := private_memory(self.process.pid)) is not None:
            if size > self._memory:
                self.too_large = True
                return self.kill()
            await asyncio.sleep(BETWEEN_LOOKS)

    async def lost(self, error: Exception) -> WorkerLost:
        code = await self.process.wait()
        if self.too_large:
            return too_much_memory(self._memory)
        if -code in FROM_OUTSIDE:
            return WorkerLost("worker", f"the worker was ended by {signal.Signals(-code).name}", by_job=False)
        if code == UNUSABLE:
            return WorkerLost("worker", "the worker could run nothing more", by_job=False)
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
        return WorkerLost("worker", f"the worker ended {how}", by_job=True)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    async def ended(self) -> str:
        await self.process.wait()
        self.writer.close()
        return f"status {self.process.returncode}"


class LocalWorkers(KeptWorkers[Process]):
    """So many processes for each model; what is loaded is said beside its name.

    Each has `memory` of its own, a share of the machine's if nobody says.
    """

    def __init__(
        self, models: Mapping[str, str], each: int, *, limits: Limits, memory: int | None = None, device: str = "cpu"
    ) -> None:
        super().__init__(models, each, limits)
        self.memory = memory or int(0.9 * machine_memory() / (each * len(models)))
        self._device = device

    def settings(self, model: str) -> dict[str, Any]:
        threads = max(1, (os.cpu_count() or 1) // (self.each * len(self.models)))
        return {"model": self.models[model], "threads": threads, "device": self._device}

    async def spawn(self, model: str) -> Process:
        ours, theirs = socket.socketpair()
        # without warnings, whose words may be of whoever sent the graph that runs
        command = [sys.executable, "-W", "ignore", "-m", "nnzoo.remote.server.worker", str(theirs.fileno())]
        with theirs:  # in a session of its own: Ctrl-C is for the server, which then ends its workers
            process = await asyncio.create_subprocess_exec(
                *command,
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                start_new_session=True,
                env={**PATIENT_THREADS, **os.environ},
            )
        worker = Process(self, model, process)
        worker.reader, worker.writer = await asyncio.open_connection(sock=ours)
        return worker


def too_much_memory(most: int) -> WorkerLost:
    """That a worker was ended for what it needed."""
    return WorkerLost(
        "limit", f"more than {most / 2**20:.0f} MiB of memory were needed, and are not given", by_job=True
    )


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
