"""A job on a server: ask how it stands, wait for it, await it, cancel it."""

import asyncio
import json
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from enum import Enum
from threading import Lock
from typing import Any, NamedTuple

from torch import Tensor

from nnzoo.remote.client import WAIT, Client, connect
from nnzoo.remote.errors import RemoteError, failure
from nnzoo.remote.progress import Display
from nnzoo.remote.protocol import Message, unpack
from nnzoo.tracing.lines import add_note

FIRST_WAIT = 0.5  # seconds: what is there by then needs no display, and no second request
AWAITED = 2.0  # seconds: for no longer does a thread go on with a job that is awaited no more


class Status(str, Enum):
    """How a job stands; in capitals by nnsight's names too."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = COMPLETED = "done"
    FAILED = ERROR = "failed"
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        """Whether nothing will change any more."""
        return self not in (Status.QUEUED, Status.RUNNING)

    def __str__(self) -> str:
        return self.value


class Event(NamedTuple):
    """What happened: its name, "status", "progress", "log" or "end", and what the server says of it."""

    name: str
    data: Any


def pick_up(id: str, host: str | None = None) -> "Job":
    """A job that was sent before, by this process or by another, at CONFIG.API.HOST or another host.

    Its trace is not here: `result()` gives the values that were saved, in the order of the program, and `.grad` is
    with those that have one. A job that is pickled is picked up so, with the key of the process that it comes to.
    Raises NoServer where no host is known; that a host has no such job, JobGone, is said when it is asked of it.
    """
    return Job(connect(host), id, _saved)


def _saved(message: Message) -> list[Tensor]:
    saved, grads = message.fields["saved"], message.fields["grads"]
    for number, name in grads.items():
        message.tensors[saved[number]].grad = message.tensors[name]
    return [message.tensors[saved[number]] for number in sorted(saved, key=int)]


class Job:
    """One job. `receive` makes of its result what `result()` gives, and `failed` is told of an error instead.

    `id` is the server's name for it. `ahead` says how many jobs stood before it in the queue, `progress` how far it
    had come, and `logs` what the server said of it, when it was last heard of.
    """

    def __init__(
        self,
        client: Client,
        id: str,
        receive: Callable[[Message], Any],
        failed: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self.id, self.client = id, client
        self.ahead: int | None = None
        self.progress: dict[str, Any] | None = None
        self.logs: list[str] = []
        self._status = Status.QUEUED
        self._receive, self._failed = receive, failed
        self._data: bytes | None = None  # its result, where it came with the answer to its sending
        self._lock = Lock()
        self._outcome: tuple[Any, Exception | None] | None = None

    @classmethod
    def send(cls, client: Client, request: bytes, *, wait: bool, **how: Any) -> "Job":
        """A new job; where one waits for it anyway, a quick one's result comes at once."""
        about, data = client.submit(request, FIRST_WAIT if wait else 0)
        job = cls(client, about["id"], **how)
        job._data = data
        job._hear(about)
        return job

    def __reduce__(self) -> tuple:
        return pick_up, (self.id, self.client.host)

    # --- how it stands -------------------------------------------------------------------------------------------

    def status(self) -> Status:
        """How it stands now: the server is asked, until it is over."""
        if not self._status.is_over:
            self._hear(self.client.status(self.id))
        return self._status

    def _hear(self, about: dict[str, Any]) -> None:
        if "status" in about:
            self._status = Status(about["status"])
        self.ahead = about.get("ahead", self.ahead)
        self.progress = about.get("progress") or self.progress

    def events(self, after: str | None = None) -> Iterator[Event]:
        """What happens to it, until it is over; from the beginning, or from after an event."""
        if after is None:
            self.logs.clear()  # they come again
        for event in self.client.events(self.id, after):
            with suppress(ValueError):  # a comment, or what a later server may say
                happened = Event(event.event, json.loads(event.data))
                self._note(happened)
                yield happened

    def _note(self, event: Event) -> None:
        if event.name == "log":
            self.logs.append(event.data["line"] if isinstance(event.data, dict) else str(event.data))
        elif event.name == "progress":
            self.progress = event.data
        elif isinstance(event.data, dict):
            self._hear(event.data)

    def __iter__(self) -> Iterator[Event]:
        return self.events()

    # --- its result ----------------------------------------------------------------------------------------------

    def wait(self, timeout: int | float | None = None) -> None:
        """Come back when it is over. Raises TimeoutError where that takes more than so many seconds.

        Interrupted (Ctrl-C), it cancels the job.
        """
        try:
            self._wait(None if timeout is None else time.monotonic() + timeout)
        except KeyboardInterrupt:
            with suppress(Exception):
                self.cancel()
            raise

    def _wait(self, end: int | float | None) -> None:
        with Display() as display:
            is_shown = display.is_shown and end is None
            wait = FIRST_WAIT if is_shown else WAIT
            while self._outcome is None:
                left = wait if end is None else min(wait, end - time.monotonic())
                if left < 0:
                    raise TimeoutError(f"job {self.id} is not over yet ({self._status})")
                self._ask(left)
                if self._outcome is None and is_shown:
                    display.show(self._status, self.ahead, self.progress)
                    is_shown = self._watch(display)

    def _ask(self, wait: int | float) -> None:
        """Take the result, if it is there within so many seconds."""
        data = self._data or self.client.result(self.id, wait)
        if data is not None:
            self._take(data)

    def _watch(self, display: Display) -> bool:
        """Show what happens until it is over; False where events do not come through, as by some proxies."""
        try:
            for _ in self.events():
                display.show(self._status, self.ahead, self.progress)
        except RemoteError:
            return False
        return True

    def _take(self, data: bytes) -> None:
        with self._lock:
            if self._outcome is not None:
                return
            self._outcome = _, error = self._opened(data)
            if error is not None:
                self._failed(error)
            self._data = None
            del self._receive, self._failed  # which hold the trace

    def _opened(self, data: bytes) -> tuple[Any, Exception | None]:
        try:
            message = unpack(data, kinds=("result", "error"))
            if message.kind == "error":
                raise failure(message.fields)
            self._status = Status.DONE
            return self._receive(message), None
        except Exception as error:
            if not isinstance(error, RemoteError):
                add_note(error, f"in job {self.id} on {self.client.host}")
            self._status = Status.CANCELLED if getattr(error, "code", "") == "cancelled" else Status.FAILED
            return None, error

    def result(self, timeout: int | float | None = None) -> Any:
        """The values that it was to save, in the order of the program; those of its trace are filled in with it.

        Raises what went wrong there, as it would have here, and TimeoutError after so many seconds.
        """
        self.wait(timeout)
        return self._given()

    def _given(self) -> Any:
        assert self._outcome is not None, "it was waited for"
        value, error = self._outcome
        if error is not None:
            raise error
        return value

    def __await__(self) -> Generator[Any, None, Any]:
        return self._awaited().__await__()

    async def _awaited(self) -> Any:
        """In threads, each of which ends soon: one that is awaited no more keeps no program from ending."""
        while self._outcome is None:
            await asyncio.to_thread(self._ask, AWAITED)
        return self._given()

    def cancel(self) -> None:
        """Take it out of the queue, or stop it. One that is over stays as it is."""
        if self.status().is_over:
            return
        self.client.cancel(self.id)
        self._status = Status.CANCELLED

    def __repr__(self) -> str:
        return f"<Job {self.id} on {self.client.host}: {self._status}>"


class Backend:
    """A job by the names of nnsight's `tracer.backend`: called, it gives the result, or None while there is none."""

    def __init__(self, job: Job) -> None:
        self._job = job

    @property
    def job_id(self) -> str:
        """The server's name for the job."""
        return self._job.id

    @property
    def status(self) -> Status:
        """How it stands now."""
        return self._job.status()

    def __call__(self) -> Any:
        """What the job saved; None while it is not over."""
        return self._job.result() if self._job.status().is_over else None
