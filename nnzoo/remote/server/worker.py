"""A worker process: one model, jobs one batch after the other, over a socket that it inherits.

It is started by `nnzoo.remote.server.local`, with the socket's descriptor as its only argument. It trusts its server,
and nothing that is in a request: those are checked by `nnzoo.remote.running`.
"""

import contextlib
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict
from importlib import import_module
from queue import SimpleQueue
from typing import Any

from nnzoo.remote.server.frames import Frame, Kind, packed, packed_json, receive

UNUSABLE = 75  # the exit status of a worker that can run nothing more, whatever it is given
TURN = 1.0  # seconds, after which no other job of a batch is begun: those of other keys may come first
BETWEEN_REPORTS = 0.05  # seconds; a job that takes less reports nothing


class Cancelled(Exception):
    """Nobody wants the answer to the request that runs."""


class Worker:
    """The end of the socket at which the work is done."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._frames: SimpleQueue[Frame] = SimpleQueue()
        self._batch = 0  # the number of the batch that was begun last
        self._cancelled: set[tuple[int, int]] = set()  # batch, request
        threading.Thread(target=self._listen, daemon=True).start()

    def work(self) -> None:
        """Load the model, say so, and run what comes until the server is gone."""
        settings = self._frames.get().json
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # short of memory, Linux ends a worker and not the server
        try:
            model, run, limits = _loaded(settings)
        except Exception as error:
            return self._send(packed(Kind.USELESS, data=f"{type(error).__name__}: {error}".encode()))
        self._send(packed(Kind.READY))
        while True:
            number = self._frames.get().number
            requests = [self._frames.get().data for _ in range(number)]
            self._batch += 1
            for number, answer in run(model, requests, limits, self._reporter(), TURN):
                self._send(packed(Kind.GIVEN_BACK, number) if answer is None else packed(Kind.ANSWER, number, answer))

    def _listen(self) -> None:
        """Take in what the server says. Where it is gone there is nobody to work for, whatever runs now."""
        stream = self._connection.makefile("rb")
        while True:
            try:
                frame = receive(stream)
            except (EOFError, OSError):
                os._exit(0)
            if frame.kind == Kind.CANCEL:
                later = {one for one in self._cancelled if one[0] >= self._batch}
                self._cancelled = later | {(int(frame.data), frame.number)}
            else:
                self._frames.put(frame)

    def _reporter(self) -> Callable[[int, Any], None]:
        """Tells the server of progress, now and then."""
        batch, said, begun = self._batch, dict[int, float](), time.monotonic()

        def report(number: int, progress: Any) -> None:
            if (batch, number) in self._cancelled:
                raise Cancelled("the job was cancelled")
            now = time.monotonic()
            if now - said.get(number, begun) >= BETWEEN_REPORTS:
                said[number] = now
                self._send(packed_json(Kind.PROGRESS, asdict(progress), number))

        return report

    def _send(self, parts: list[bytes]) -> None:
        for part in parts:
            self._connection.sendall(part)


def _loaded(settings: dict[str, Any]) -> tuple[Any, Callable[..., Iterable[tuple[int, bytes | None]]], Any]:
    import torch

    from nnzoo import LanguageModel
    from nnzoo.remote.limits import Limits

    torch.set_num_threads(settings["threads"])
    module, name = settings["runner"].split(":")
    model = LanguageModel(settings["model"], device=settings["device"]).dispatch()
    return model, getattr(import_module(module), name), Limits(**settings["limits"])


if __name__ == "__main__":
    try:
        Worker(socket.socket(fileno=int(sys.argv[1]))).work()
    except Exception:
        traceback.print_exc()
        os._exit(UNUSABLE)  # at once: what a lost GPU leaves behind cannot be tidied up
