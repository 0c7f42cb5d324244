"""A worker as an actor on a node of a Ray cluster: it passes bytes on between the server and the worker in it.

It is started by `nnzoo.remote.server.ray_workers`. Requests and answers are frames, in pieces that Ray takes as they
are: bytes, which it pickles neither here nor there.
"""

import asyncio
import json
import logging
import os
import platform
import socket
import threading
from collections.abc import AsyncIterator, Iterable, Iterator
from importlib.metadata import version
from typing import Any

from nnzoo.remote.protocol import VERSION
from nnzoo.remote.server.frames import Frame, Kind, packed, packed_json, read
from nnzoo.remote.server.local import BETWEEN_LOOKS, machine_memory, private_memory
from nnzoo.remote.server.worker import Worker

PIECE = 2**22  # bytes, that are in the cluster's object stores at a time; a small store does for large answers


class Actor:
    """One worker, in a thread of its own; what is said to the actor meanwhile is heard."""

    def about(self) -> dict[str, Any]:
        """Where it is, and what it is made of."""
        return {"node": platform.node(), "process": os.getpid(), "nnzoo": version("nnzoo"), "protocol": VERSION}

    async def start(self, settings: str) -> str:
        """Load a model; "" when it is there, else why it cannot be."""
        told = json.loads(settings)
        self._memory = told["memory"] or int(0.9 * machine_memory())
        self._most_bytes = told["most_bytes"]
        ours, theirs = socket.socketpair()
        threading.Thread(target=_work, args=[Worker(theirs)], daemon=True).start()
        self._reader, self._writer = await asyncio.open_connection(sock=ours)
        self._writer.writelines(packed_json(Kind.SETTINGS, told))
        return (await self._read()).data.decode(errors="replace")

    async def give(self, data: bytes) -> None:
        """The next piece of a batch, but for the last."""
        self._writer.write(data)
        await self._writer.drain()

    async def run(self, number: int, data: bytes) -> AsyncIterator[bytes]:
        """The last piece of a batch of so many requests: gives the pieces of what the worker says, answers included."""
        await self.give(data)
        while number:
            frame = await self._within_memory(asyncio.ensure_future(self._read()))
            if frame.kind == Kind.TOO_LARGE:
                number = 0
            elif frame.kind in (Kind.ANSWER, Kind.GIVEN_BACK):
                number -= 1
            for piece in pieces(packed(*frame)):
                yield piece

    async def cancel(self, number: int, batch: int) -> None:
        self._writer.writelines(packed(Kind.CANCEL, number, str(batch).encode()))

    async def live(self) -> None:
        """Never returns: it fails when the actor ends, which is how its server learns of it."""
        await asyncio.Event().wait()

    async def _read(self) -> Frame:
        return await read(self._reader, self._most_bytes)

    async def _within_memory(self, coming: asyncio.Future[Frame]) -> Frame:
        """What comes, or that the memory of this process, mapped files left out, is more than it may be."""
        while not (await asyncio.wait([coming], timeout=BETWEEN_LOOKS))[0]:
            if (private_memory(os.getpid()) or 0) > self._memory:
                coming.cancel()
                return Frame(Kind.TOO_LARGE, 0, str(self._memory).encode())
        return coming.result()


def _work(worker: Worker) -> None:
    try:
        worker.work()
    except BaseException:
        logging.exception("the worker failed")
        os._exit(1)


def pieces(parts: Iterable[bytes], size: int = PIECE) -> Iterator[bytes]:
    """Bytes in pieces that are not much larger than some size.

    >>> list(pieces([b"abc", b"d", b"efghij"], size=2))
    [b'ab', b'cd', b'ef', b'gh', b'ij']
    """
    held = bytearray()
    for part in parts:
        for start in range(0, len(part), size):
            held += memoryview(part)[start : start + size]
            if len(held) >= size:
                yield bytes(held)
                held.clear()
    if held:
        yield bytes(held)
