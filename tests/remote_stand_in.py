"""A server in this process: nnzoo's HTTP, answered by a transport, each job run as it comes in.

`faults` are answered, or raised, before the server is asked, one after the other.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2

from nnzoo import CONFIG, LanguageModel
from nnzoo.remote.client import Client
from nnzoo.remote.limits import Limits
from nnzoo.remote.protocol import MEDIA_TYPE, ProtocolError, pack, unpack
from nnzoo.remote.running import run_requests

HOST, KEY = "http://stand-in", "the key"
Answer = httpx2.Response
Fault = Answer | Exception | Callable[[httpx2.Request], Answer | None]


class StandIn:
    """Serves models by their names."""

    def __init__(self, **models: LanguageModel) -> None:
        self.models = models
        self.faults: list[Fault] = []
        self.asked: list[str] = []  # method and path of all requests
        self.jobs: dict[str, dict[str, Any]] = {}
        self.runs = 0
        self.is_stopped = False  # jobs stay in the queue
        self.is_left_out = False  # by tests through the wire
        self.events = ""

    @property
    def client(self) -> Client:
        """A client of it alone."""
        return Client(HOST, KEY, transport=httpx2.MockTransport(self.answer))

    @contextmanager
    def configured(self) -> Iterator["StandIn"]:
        """Inside the `with`, it is what remote=True means."""
        CONFIG.API.HOST, CONFIG.API.APIKEY = HOST, KEY
        before, CONFIG.API.connections = CONFIG.API.connections, AlwaysThis(self.client)
        try:
            yield self
        finally:
            CONFIG.API.HOST = CONFIG.API.APIKEY = None
            CONFIG.API.connections = before

    def answer(self, request: httpx2.Request) -> Answer:
        """What it says to a request."""
        self.asked.append(f"{request.method} {request.url.path}")
        if self.faults:
            fault = self.faults.pop(0)
            said = fault(request) if not isinstance(fault, (Answer, Exception)) else fault
            if isinstance(said, Exception):
                raise said
            if said is not None:
                return said
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return refused(401, "key", "no such key")
        match request.method, *request.url.path.strip("/").split("/"):
            case "GET", "models":
                return Answer(200, json=[{"name": name} for name in self.models])
            case "GET", "version":
                return Answer(200, json={"nnzoo": "0", "protocol": 1})
            case "POST", "jobs":
                return self._submit(request)
            case method, "jobs", job, *what:
                return self._job(method, job, what, request)
        return refused(404, "path", "nothing is here")

    def _submit(self, request: httpx2.Request) -> Answer:
        assert request.headers["Content-Type"] == MEDIA_TYPE
        key = request.headers["Idempotency-Key"]
        for job in self.jobs.values():
            if job["key"] == key:
                return Answer(200, json=about(job))
        try:
            message = unpack(request.content, kinds=["request"])
        except ProtocolError as error:
            return refused(400, "protocol", str(error))
        name = message.fields["model"]
        if name not in self.models:
            return refused(404, "model", f"this server has no model {name!r}; it has {', '.join(self.models)}")
        job = {
            "id": f"j{len(self.jobs)}",
            "key": key,
            "status": "queued",
            "message": message,
            "request": request.content,
            "result": b"",
        }
        self.jobs[job["id"]] = job
        if not self.is_stopped:
            self.run(job)
        if job["result"] and "wait" in request.url.params:
            return Answer(
                200, content=job["result"], headers={"Content-Type": MEDIA_TYPE, "Location": f"/jobs/{job['id']}"}
            )
        return Answer(202, json=about(job))

    def run(self, job: dict[str, Any]) -> None:
        """Run a job, as a worker does."""
        self.runs += 1
        message = job["message"]
        (job["result"],) = run_requests(
            self.models[message.fields["model"]], [job["request"]], Limits(), lambda number, progress: None
        )
        job["status"] = "done" if unpack(job["result"], kinds=["result", "error"]).kind == "result" else "failed"

    def _job(self, method: str, name: str, what: list[str], request: httpx2.Request) -> Answer:
        job = self.jobs.get(name)
        if job is None:
            return refused(404, "job", f"there is no job {name}")
        if method == "DELETE":
            job["status"] = "cancelled"
            job["result"] = pack(
                "error", {"type": "Cancelled", "message": "it was cancelled", "line": None, "code": "cancelled"}
            )
            return Answer(204)
        if what == ["events"]:
            return Answer(200, text=self.events, headers={"Content-Type": "text/event-stream"})
        if what == ["result"]:
            return Answer(200, content=job["result"]) if job["result"] else Answer(202, json=about(job))
        return Answer(200, json=about(job))


class AlwaysThis(dict):
    """Connections that are all one client's."""

    def __init__(self, client: Client) -> None:
        super().__init__()
        self._client = client

    def __contains__(self, key: object) -> bool:
        return True

    def __getitem__(self, key: object) -> Client:
        return self._client


def about(job: dict[str, Any]) -> dict[str, Any]:
    return {"id": job["id"], "status": job["status"], "ahead": 0, "progress": None}


def refused(status: int, code: str, message: str, **headers: str) -> Answer:
    return Answer(status, content=json.dumps({"error": {"code": code, "message": message}}), headers=headers)
