"""What a server adds to a small trace: HTTP, the queue on disk, another process; all of it on this machine."""

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.measure import Job, alternate
from benchmarks.report import Row, bound_row, show
from benchmarks.serving import MODEL, Server, processor_seconds
from benchmarks.setup import Setup
from nnzoo import LanguageModel

SUBJECT = "Remote trace that saves one layer, loopback"
OVERHEAD = 15.0  # milliseconds


def rows(setup: Setup) -> list[Row]:
    """Beyond the same trace here, by the clock; and each process's time on a core, which others cannot stretch."""
    model = LanguageModel(MODEL)
    with TemporaryDirectory() as folder, Server([MODEL], data=Path(folder)) as server:

        def traced(remote: bool | str) -> Callable[[], torch.Tensor]:
            def trace() -> torch.Tensor:
                with model.trace("The capital of France is", **({"remote": remote} if remote else {})):
                    hidden = model.transformer.h[1].output[0].save()
                return hidden

            return trace

        remote = traced(server.url)
        turns = alternate({"remote": by_the_clock(remote), "local": by_the_clock(traced(False))}, setup.effort)
        cores = on_all_cores(remote, server)
    beyond, local = 1e3 * turns.difference("remote", "local"), f"local {show(turns.median('local'))}"
    return [
        bound_row(SUBJECT, "beyond the local trace, median", beyond, OVERHEAD, "ms", local),
        Row(SUBJECT, "of a core: client, server, worker", *(f"{1e3 * part:.2g} ms" for part in cores)),
    ]


def by_the_clock(work: Callable[[], object]) -> Job:
    """A job that is timed alone: whoever waits for another process has no use for the time on its own core."""

    def job() -> float:
        work()  # brings back what the neighbour's turn has driven away
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return job


def on_all_cores(work: Callable[[], object], server: Server, times: int = 100) -> list[float]:
    """Seconds that this process, the server and its worker each have a core for one trace."""

    def now() -> list[float]:
        return [time.process_time(), *map(processor_seconds, (server.process.pid, *server.workers()))]

    before = now()
    for _ in range(times):
        work()
    return [(after - start) / times for start, after in zip(before, now(), strict=True)]
