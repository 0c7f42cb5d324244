"""A server under load: many clients, each with many traces of its own. Are all answered, each its own, in flat memory?

.venv/bin/python -m benchmarks.serving          50 clients x 20 jobs, nnzoo/tiny-gpt2, two workers
"""

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from statistics import median

import torch

from nnzoo import LanguageModel
from nnzoo.remote.protocol import pack

MODEL = "nnzoo/tiny-gpt2"
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from remote_http import Client  # noqa: E402
from remote_server import Server  # noqa: E402


def traced(model: LanguageModel, scale: float) -> tuple[bytes, torch.Tensor]:
    """A request that no other is like, and the logits that it is to give."""
    with model.trace("The capital of France is") as tracer:
        model.transformer.h[1].output[0][:] *= scale
        logits = model.output[0, -1].save()
        graph = tracer.graph
    return pack("request", {"model": MODEL, "graph": graph.to_json()}, graph.tensors), logits


def one_client(url: str, key: str, jobs: list[tuple[bytes, torch.Tensor]]) -> list[float]:
    """Seconds of each job; AssertionError for an answer that is not its own."""
    seconds = []
    with Client(url, key) as http:
        for request, logits in jobs:
            start = time.perf_counter()
            answer = http.answer(http.queue(request))
            seconds.append(time.perf_counter() - start)
            assert torch.allclose(*answer.tensors.values(), logits, atol=1e-4), "another's answer"
    return seconds


def memory(server: Server) -> dict[str, float]:
    """MiB that no file backs, of the server and of its workers."""
    from nnzoo.remote.server.local import private_memory

    sizes = [(private_memory(process) or 0) / 2**20 for process in (server.process.pid, *server.workers())]
    return {"server": sizes[0], **{f"worker {i}": size for i, size in enumerate(sizes[1:])}}


def processor_seconds(process: int) -> float:
    """Time that a process had a core."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--clients", type=int, default=50)
    options.add_argument("--jobs", type=int, default=20)
    options.add_argument("--rounds", type=int, default=3, help="all of it so many times, for the memory")
    asked = options.parse_args()
    model = LanguageModel(MODEL)
    torch.set_num_threads(1)
    jobs = [[traced(model, 1 + 0.01 * i + 0.0003 * j) for j in range(asked.jobs)] for i in range(asked.clients)]
    with Server([MODEL], workers=2) as server:
        alone = sorted(one_client(server.url, "alone", jobs[0] * 10))
        print(f"one client: median {1e3 * median(alone):.1f} ms")
        for number in range(asked.rounds):
            before, busy, start = memory(server), processor_seconds(server.process.pid), time.perf_counter()
            with ThreadPoolExecutor(asked.clients) as pool:
                keys = [f"key {i}" for i in range(asked.clients)]
                seconds = [*chain(*pool.map(one_client, [server.url] * asked.clients, keys, jobs))]
            took, busy = time.perf_counter() - start, processor_seconds(server.process.pid) - busy
            print(f"round {number}: {len(seconds)} jobs in {took:.1f} s, median {median(seconds):.3f} s,", end=" ")
            print(f"server's own {1e3 * busy / len(seconds):.1f} ms of a core per job")
            print("   MiB", {name: f"{size:.0f} -> {memory(server).get(name, 0):.0f}" for name, size in before.items()})


if __name__ == "__main__":
    main()
