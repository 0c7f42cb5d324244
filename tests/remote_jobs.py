"""A stand-in for the running of graphs: jobs that sleep, grow, crash or answer at once, as their text says.

One that waits does so until a test makes the file that is its `gate`: no test has to be quick.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nnzoo.remote.protocol import Message, pack, unpack

MODEL = "nnzoo/tiny-gpt2"


@dataclass
class Progress:
    layer: int | None
    n_layers: int
    token: int | None = None
    n_tokens: int | None = None


def job(do: str = "answer", model: str = MODEL, **details: Any) -> bytes:
    """A request that asks the stand-in for something."""
    return pack("request", {"model": model, "graph": json.dumps({"do": do, **details})})


def answers(
    model: object, requests: Sequence[bytes], limits: object, report: Callable[[int, Progress], None], turn: float
) -> Iterator[tuple[int, bytes | None]]:
    begun = time.monotonic()
    for number, request in enumerate(requests):
        yield number, _run(number, request, len(requests), report)
        if time.monotonic() - begun > turn:
            break
    yield from ((left, None) for left in reversed(range(number + 1, len(requests))))


def _run(number: int, request: bytes, together: int, report: Callable[[int, Progress], None]) -> bytes:
    asked = json.loads(unpack(request, kinds=["request"]).fields["graph"])
    if "journal" in asked:  # that it was begun, for tests that count
        with open(asked["journal"], "a") as file:
            file.write(f"{asked.get('name', '')} {os.getpid()} {together}\n")
    tensors = {"name": torch.tensor([*str(asked.get("name")).encode()], dtype=torch.uint8)}
    if asked["do"] in ("sleep", "wait"):
        until = time.monotonic() + asked.get("seconds", 300)
        while time.monotonic() < until and not ("gate" in asked and os.path.exists(asked["gate"])):
            try:
                report(number, Progress(layer=1, n_layers=4))
            except Exception as error:
                return failure(error)
            time.sleep(0.01)
    elif asked["do"] == "hang":
        time.sleep(asked["seconds"])
    elif asked["do"] == "grow":
        kept = [torch.ones(2**20) for _ in range(asked["mib"] // 4)]
        time.sleep(5)
        assert kept
    elif asked["do"] == "break":
        raise RuntimeError("this worker is of no use any more")
    elif asked["do"] == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif asked["do"] == "bytes":
        tensors |= {"t": torch.zeros(asked["size"], dtype=torch.uint8)}
    elif asked["do"] == "fail":
        return failure(ValueError("no"))
    fields = {"made": [], "absent": [], "drawn": [], "gradients": {}, "grads": {}}
    return pack("result", {**fields, "saved": dict(zip("01", tensors, strict=False))}, tensors)


def failure(error: Exception) -> bytes:
    return pack("error", {"type": type(error).__name__, "message": str(error), "line": None, "code": "run"})


def said(answer: Message) -> str:
    """The name of the job whose answer it is."""
    return bytes(answer.tensors["name"].tolist()).decode()
