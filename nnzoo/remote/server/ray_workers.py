"""Workers that are actors on a Ray cluster: spread over its nodes, each with its share of processors or a GPU.

Ray finds the node for each actor, tells when one is gone, and carries bytes; jobs, retries and limits stay with the
server, so an actor that ends is not restarted by Ray: another takes its place, on whichever node has room.
"""

import asyncio
import json
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from nnzoo.remote.limits import Limits
from nnzoo.remote.protocol import VERSION
from nnzoo.remote.server.frames import Frame, Kind, packed, read
from nnzoo.remote.server.keeping import KeptWorker, KeptWorkers
from nnzoo.remote.server.local import too_much_memory
from nnzoo.remote.server.ray_actor import Actor, pieces
from nnzoo.remote.server.workers import WorkerLost

log = logging.getLogger(__name__)
WITHOUT_A_WORD = 20.0  # seconds that a worker waits for a node, before the log says so
HEAD_LOST = 75  # the exit status of a server whose cluster has lost its head; to be started again, as EX_TEMPFAIL says
BETWEEN_KNOCKS = 2.0  # seconds, at the head's door
UNANSWERED = 3  # knocks in a row, after which it is gone
AHEAD = 4  # pieces of answers that are under way before the server takes them


def connect(address: str) -> None:
    """Join a cluster. Raises ConnectionError where there is none, or it does not take this process."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        _knock(address)
        ray.init(address, namespace="nnzoo", log_to_driver=False, logging_level=logging.ERROR)
    except (RayError, OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        if not isinstance(error, OSError) or error.errno is None:  # somebody listens there
            reason += "; where it asks for a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
        raise ConnectionError(f"cannot join a Ray cluster at {address}: {reason}") from error
    if os.environ.get("RAY_AUTH_MODE") != "token":
        log.warning("the Ray cluster asks for no token: whoever reaches its ports runs code there (docs/remote.md)")


def _knock(address: str) -> None:
    """Raise OSError where nobody listens, which Ray finds out after minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


async def watch(address: str) -> None:
    """End this process when the cluster's head is gone: Ray ends it too, a minute later and without a word.

    The queue is on disk, and a server that is started again goes on with it, at this cluster or another.
    """
    unanswered = 0
    while unanswered < UNANSWERED:
        await asyncio.sleep(BETWEEN_KNOCKS)
        try:
            await asyncio.to_thread(_knock, address)
            unanswered = 0
        except OSError as error:
            unanswered, reason = unanswered + 1, error
    log.error("the head of the Ray cluster at %s is gone (%s); the next server goes on with the queue", address, reason)
    os._exit(HEAD_LOST)


class RayWorker(KeptWorker):
    """One actor."""

    def __init__(self, workers: "RayWorkers", model: str, actor: Any) -> None:
        super().__init__(workers, model)
        self._most_bytes, self._needs = workers.most_bytes, workers.needs
        self._actor = actor
        self._life = asyncio.ensure_future(_end_of(actor.live.remote()))
        self._place = "no node yet"
        self._said = _Pieces()

    def __str__(self) -> str:
        return self._place

    async def ready(self, settings: dict[str, Any]) -> str:
        about = await self._placed()
        self._place = f"process {about['process']} on {about['node']}"
        here = {"nnzoo": version("nnzoo"), "protocol": VERSION}
        for name, ours in here.items():
            if about[name] != ours:
                return (
                    f"{about['node']} has {name} {about[name]}, and this server {ours}: install one version everywhere"
                )
        return await _got(self._actor.start.remote(json.dumps(settings)))

    async def _placed(self) -> dict[str, Any]:
        coming = asyncio.ensure_future(_got(self._actor.about.remote()))
        try:
            if not (await asyncio.wait([coming], timeout=WITHOUT_A_WORD))[0]:
                log.warning("a worker of %s waits for a node of the cluster with %s to spare", self.model, self._needs)
            return await coming
        finally:
            coming.cancel()

    async def give(self, requests: Sequence[bytes]) -> None:
        parts = packed(Kind.RUN, len(requests))
        for request in requests:
            parts += packed(Kind.REQUEST, data=request)
        *first, last = pieces(parts)
        for piece in first:
            await _got(self._actor.give.remote(piece))
        run = self._actor.run.options(_generator_backpressure_num_objects=AHEAD)
        self._said = _Pieces(run.remote(len(requests), last))

    async def read(self) -> Frame:
        frame = await read(self._said, self._most_bytes)
        if frame.kind == Kind.TOO_LARGE:
            self.kill()
            raise too_much_memory(int(frame.data))
        return frame

    def cancel(self, number: int) -> None:
        self._actor.cancel.remote(number, self.batch)

    async def lost(self, error: Exception) -> WorkerLost:
        """Ray knows of no difference between a process that crashed and one that was killed, as with its node."""
        self.kill()
        return WorkerLost("worker", "the worker ended, or the node that it was on", by_job=False)

    def kill(self) -> None:
        ray.kill(self._actor)

    async def ended(self) -> str:
        return await asyncio.shield(self._life)


class RayWorkers(KeptWorkers[RayWorker]):
    """So many actors for each model, on the cluster that this process joined.

    Each takes `cpus` processors and as many threads, and with a `device` of CUDA's `gpus` GPUs, and sees no others.
    `memory` is set aside for it on its node; if nobody says, it may take nearly all that the node has.
    """

    def __init__(
        self,
        models: Mapping[str, str],
        each: int,
        *,
        limits: Limits,
        memory: int | None = None,
        device: str = "cpu",
        cpus: int = 1,
        gpus: float = 1.0,
    ) -> None:
        super().__init__(models, each, limits)
        self._memory, self._device, self._cpus = memory, device, cpus
        self.needs = {"num_cpus": cpus, "num_gpus": gpus if device.startswith("cuda") else 0, "memory": memory or 0}
        self._actors = ray.remote(Actor)

    def start(self, changed: Callable[[str], None]) -> None:
        super().start(changed)
        self._keepers.append(asyncio.create_task(watch(ray.get_runtime_context().gcs_address)))

    def settings(self, model: str) -> dict[str, Any]:
        """A folder is named from the root, since a node has another folder to begin with."""
        loaded = self.models[model]
        name = str(Path(loaded).resolve()) if Path(loaded).is_dir() else loaded
        told = {"threads": self._cpus, "device": self._device, "memory": self._memory, "most_bytes": self.most_bytes}
        return {"model": name, **told}

    async def spawn(self, model: str) -> RayWorker:
        actor = self._actors.options(scheduling_strategy="SPREAD", max_restarts=0, **self.needs).remote()
        return RayWorker(self, model, actor)

    async def stop(self) -> None:
        await super().stop()
        await asyncio.to_thread(ray.shutdown)


class _Pieces:
    """The pieces that come from an actor, read as one stream."""

    def __init__(self, coming: AsyncIterator[Awaitable[bytes]] | None = None) -> None:
        self._coming = coming
        self._held = bytearray()

    async def readexactly(self, size: int) -> bytes:
        while len(self._held) < size:
            self._held += await _got(self._next())
        data = bytes(memoryview(self._held)[:size])
        del self._held[:size]
        return data

    async def _next(self) -> bytes:
        assert self._coming is not None
        async for piece in self._coming:
            return await piece
        raise EOFError


async def _got(coming: Awaitable[Any]) -> Any:
    """What an actor answers. Raises EOFError where it is gone."""
    try:
        return await coming
    except RayError as error:
        raise EOFError(_said(error)) from error


async def _end_of(life: Awaitable[None]) -> str:
    try:
        await life
    except RayError as error:
        return _said(error)
    return "it left"


def _said(error: RayError) -> str:
    """The last line, which tells most, without what Ray guesses."""
    last = str(error).strip().splitlines()[-1:]
    return last[0].split(" Some common causes include:")[0].strip() if last else type(error).__name__
