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
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib import import_module
from queue import SimpleQueue
from typing import Any

from nnzoo.remote.server.frames import Frame, Kind, packed, packed_json, receive, send

BETWEEN_REPORTS = 0.05  # seconds; a job that takes less reports nothing


def main(descriptor: int) -> None:
    """Load the model, say so, and run what comes until the server is gone."""
    connection = socket.socket(fileno=descriptor)
    frames: SimpleQueue[Frame] = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, frames), daemon=True).start()
    settings = frames.get().json
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # short of memory, Linux ends a worker and not the server
    try:
        model, run = _loaded(settings)
    except Exception as error:
        return send(connection, packed(Kind.USELESS, data=f"{type(error).__name__}: {error}".encode()))
    send(connection, packed(Kind.READY))
    while True:
        requests = [frames.get().data for _ in range(frames.get().number)]
        for number, answer in enumerate(run(model, requests, _reporter(connection))):
            send(connection, packed(Kind.ANSWER, number, answer))


def _listen(connection: socket.socket, frames: "SimpleQueue[Frame]") -> None:
    """Hand on what the server says. Where it is gone there is nobody to work for, whatever runs now."""
    stream = connection.makefile("rb")
    while True:
        try:
            frames.put(receive(stream))
        except (EOFError, OSError):
            os._exit(0)


def _loaded(settings: dict[str, Any]) -> tuple[Any, Callable[..., Sequence[bytes]]]:
    import torch

    from nnzoo import LanguageModel

    torch.set_num_threads(settings["threads"])
    module, name = settings["runner"].split(":")
    run, limits = getattr(import_module(module), name), settings["limits"]
    model = LanguageModel(settings["model"]).dispatch()
    return model, lambda model, requests, report: run(model, requests, limits, report)


def _reporter(connection: socket.socket) -> Callable[[int, Any], None]:
    """Tells the server of progress, now and then."""
    said: dict[int, float] = {}
    begun = time.monotonic()

    def report(number: int, progress: Any) -> None:
        now = time.monotonic()
        if now - said.get(number, begun) >= BETWEEN_REPORTS:
            said[number] = now
            send(connection, packed_json(Kind.PROGRESS, asdict(progress), number))

    return report


if __name__ == "__main__":
    main(int(sys.argv[1]))
