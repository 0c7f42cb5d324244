"""Requests to results on a model, in this process: alone or several in one pass, and none harms another.

Whatever a request is, its answer is a message, "result" or "error". A run leaves the model's weights, their gradients
and PyTorch's global state as they were.
"""

import math
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nnzoo.architectures.hooks import HookPoint, Listener
from nnzoo.generation.randomness import global_generator
from nnzoo.language_model import LanguageModel
from nnzoo.remote.joining import groups, join
from nnzoo.remote.limits import LimitError, Limits
from nnzoo.remote.protocol import ProtocolError, pack
from nnzoo.remote.reading import Job, read
from nnzoo.remote.watching import Progress, Watch, WatchedRun
from nnzoo.tracing.functions import GraphError
from nnzoo.tracing.graph import Line, Node
from nnzoo.tracing.replay import OtherModelError, Replayed

Report = Callable[[int, Progress], None]
_CODES = (
    (LimitError, "limit"),
    (OtherModelError, "model"),
    ((GraphError, ProtocolError), "graph"),
    (TimeoutError, "timeout"),
)
_MOST_SAID = 4000  # characters of an error's message


def run_requests(model: LanguageModel, requests: Sequence[bytes], limits: Limits, report: Report) -> list[bytes]:
    """One answer for each request, in their order; requests whose graphs allow it share their passes.

    `report` is told of each block that a request's run comes to, by the request's number. What is wrong with a request
    is its answer: nothing is raised for it, and the others' answers are what they are without it.

    >>> from nnzoo.remote.protocol import unpack
    >>> model = LanguageModel("nnzoo/tiny-gpt2")
    >>> with model.trace("The capital of France is") as tracer:
    ...     logits = model.output[0, -1].save()
    ...     graph = tracer.graph
    ...     request = pack("request", {"model": "tiny-gpt2", "graph": graph.to_json()}, graph.tensors)
    >>> (answer,) = run_requests(model, [request], Limits(), lambda number, progress: None)
    >>> (value,) = unpack(answer, kinds=["result", "error"]).tensors.values()
    >>> torch.equal(value, logits)
    True
    """
    found = dict(answers(model, requests, limits, report))
    return [answer for number in range(len(requests)) if (answer := found[number]) is not None]


def answers(
    model: LanguageModel, requests: Sequence[bytes], limits: Limits, report: Report, turn: float = math.inf
) -> Iterator[tuple[int, bytes | None]]:
    """The answers of `run_requests` one by one, each with its request's number, as soon as they are there.

    After `turn` seconds what has no answer yet is given back, to be run alone later: None is its answer, the last
    first. Raises DeviceLost where no further request can be run in this process.
    """
    begun = time.monotonic()
    with model.lock, _as_it_was(model):
        jobs = []
        for number, data in enumerate(requests):
            try:
                jobs.append(read(number, data, model, limits))
            except Exception as error:  # whatever is wrong with it
                yield number, failure(error)
        waiting = deque(groups(jobs, limits))
        while waiting:
            group = waiting.popleft()
            found = _run(group, model, limits, report)
            yield from found or ()
            check_usable(model.device)
            if found is None:  # one of them had an error, or several: each alone, and from its beginning
                waiting.extendleft([read(job.number, job.data, model, limits)] for job in reversed(group))
            if time.monotonic() - begun > turn:
                break
        left = sorted((job.number for group in waiting for job in group), reverse=True)
        yield from ((number, None) for number in left)


class DeviceLost(RuntimeError):
    """A device that can be used no more in this process, as a GPU after an assertion in one of its kernels failed."""


def check_usable(device: torch.device) -> None:
    """Raise DeviceLost where a device can be used no more, whatever it is asked."""
    if device.type == "cuda":
        try:
            torch.cuda.synchronize(device)
        except RuntimeError as error:
            raise DeviceLost(str(error)) from error


def failure(error: BaseException, line: Line | None = None, code: str | None = None) -> bytes:
    """The answer that an error is; `line` is the user's that recorded the culprit, where the error knows of none."""
    line = getattr(error, "line", None) or line
    found = next((word for kind, word in _CODES if isinstance(error, kind)), "run")
    said = (str(error) or type(error).__name__)[:_MOST_SAID].encode(errors="replace").decode()
    fields = {
        "type": type(error).__name__,
        "message": said,
        "line": [line.file, line.number, line.function] if isinstance(line, Line) else None,
        "code": code or found,
    }
    return pack("error", fields)


@contextmanager
def _as_it_was(model: LanguageModel) -> Iterator[None]:
    """Afterwards the weights, and PyTorch's random numbers and modes, are as before; inside, no gradient reaches them.

    What draws random numbers without a state of its own draws others in every run.
    """
    native = model._model
    learning = [parameter for parameter in native.parameters() if parameter.requires_grad]
    devices = [model.device] if model.device.type == "cuda" else []
    for parameter in learning:
        parameter.requires_grad_(False)
    anchor = native.hook_points["hook_embed"].attach(_Anchor(lambda value: value))
    try:
        with torch.random.fork_rng(devices), torch.inference_mode(False), torch.enable_grad():
            for device in (torch.device("cpu"), *devices):  # torch.manual_seed asks every kind of device there is
                global_generator(device).manual_seed(secrets.randbits(63))
            yield
    finally:
        anchor.remove()
        for parameter in learning:
            parameter.requires_grad_()


class _Anchor(Listener):
    """Where autograd begins, since it does not at the weights: all that a pass computes can be differentiated."""

    def fire(self, value: Tensor, point: HookPoint) -> Tensor:
        return value.detach().requires_grad_() if torch.is_grad_enabled() and not value.requires_grad else value


# --- running ---------------------------------------------------------------------------------------------------------


def _run(group: list[Job], model: LanguageModel, limits: Limits, report: Report) -> list[tuple[int, bytes]] | None:
    """The answers of jobs that share their passes; None where one of several had an error."""
    watch = Watch(model._model, limits, partial(_tell, group, report, model.config.n_layers))
    whole = join([job.new for job in group])
    try:
        found = _values(whole, watch)
        check_usable(model.device)  # what a kernel did is known when it is over
        return [(job.number, _answer(job, found, whole, watch, limits)) for job in group]
    except Exception as error:
        return None if len(group) > 1 else [(group[0].number, failure(error, watch.line))]
    finally:
        watch.run = None
        whole.recorder.close()


def _values(whole: Replayed, watch: Watch) -> dict[Node, Any]:
    whole.execution.new_run = partial(WatchedRun, watch)
    with watch.listening():
        return whole.execution.finish(whole.recorder, whole.recorder.roots, carries_graph=False)


def _tell(group: list[Job], report: Report, n_layers: int, layer: int, token: int) -> None:
    for job in group:
        most = job.n_tokens
        report(job.number, Progress(layer, n_layers, None if most is None else min(token, most - 1), most))


# --- answers ---------------------------------------------------------------------------------------------------------


def _answer(job: Job, found: dict[Node, Any], whole: Replayed, watch: Watch, limits: Limits) -> bytes:
    try:
        return _result(job, found, whole, watch, limits)
    except Exception as error:  # a value that cannot be sent, or is too much
        return failure(error)


def _result(job: Job, found: dict[Node, Any], whole: Replayed, watch: Watch, limits: Limits) -> bytes:
    out = _Values(limits)
    saved = {str(number): out.name(found[node]) for node, number in job.saved.items() if node in found}
    grads = {
        str(number): out.name(g) for node, number in job.saved.items() if (g := _gradient(found.get(node))) is not None
    }
    given = {name: out.name(t.grad) for name, t in job.program.tensors.items() if t.grad is not None}
    fields = {
        "saved": saved,
        "grads": grads,
        "gradients": given,
        "absent": [number for node, number in job.saved.items() if node not in found],
        "made": [_made(job, invoke, watch) for invoke in job.new.invokes],
        "drawn": [_drawn(invoke, whole, out) for invoke in job.new.invokes],
    }
    return pack("result", fields, out.tensors)


class _Values:
    """The tensors of an answer; those that are one are sent once."""

    def __init__(self, limits: Limits) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._limits, self._bytes = limits, 0
        self._known: dict[tuple, str] = {}

    def name(self, value: Any) -> str:
        if not isinstance(value, Tensor):
            raise GraphError("what is saved is a tensor, and a call that gives several is none: save its parts")
        key: tuple = (id(value),)
        if value.layout == torch.strided:
            key = (value.data_ptr(), value.shape, value.stride(), value.dtype, value.is_conj(), value.is_neg())
        if key not in self._known:
            self._bytes += value.numel() * value.itemsize
            self._limits.check("result_bytes", self._bytes)
            self._known[key] = f"v{len(self.tensors)}"
            self.tensors[self._known[key]] = value
        return self._known[key]


def _gradient(value: Tensor | None) -> Tensor | None:
    return value.grad if value is not None and (value.is_leaf or value.retains_grad) else None


def _made(job: Job, invoke: Any, watch: Watch) -> int | None:
    """How many steps a generation came to, where that was before what was asked of it."""
    made = None if watch.run is None else watch.run.made.get(invoke)
    return made if made is not None and invoke in job.last and job.last[invoke].step >= made else None


def _drawn(invoke: Any, whole: Replayed, out: _Values) -> str | None:
    decoder = whole.execution.decoders.get(invoke)
    if decoder is None or decoder.generator is None or decoder.options.seed is not None:
        return None
    return out.name(decoder.generator.get_state())
