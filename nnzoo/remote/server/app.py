"""The server's HTTP interface: jobs are sent, watched, fetched and cancelled, each by the key that sent it."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from math import inf, nan
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from nnzoo.remote.limits import LimitError
from nnzoo.remote.protocol import MEDIA_TYPE, VERSION, ProtocolError, header_bytes, opening
from nnzoo.remote.server.bodies import Upload
from nnzoo.remote.server.dispatcher import SMALL, Dispatcher
from nnzoo.remote.server.endpoints import OfOwner
from nnzoo.remote.server.job import Job
from nnzoo.remote.server.keys import Keys, Owner
from nnzoo.remote.server.models import Served, names
from nnzoo.remote.server.refusals import Refused
from nnzoo.remote.server.store import Row

MOST_IDEMPOTENCY = 200
LONGEST_WAIT = 60.0  # seconds, for a result
BETWEEN_PINGS = 15  # seconds, in which events have nothing to say
ENDED = "ended"  # the id of a job's last event
LOCAL_NAMES = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?")


class Service:
    """The endpoints. A job of another key is answered exactly as one that does not exist."""

    def __init__(self, dispatcher: Dispatcher, keys: Keys, served: Mapping[str, Served], *, any_host: bool) -> None:
        self._dispatcher, self._keys, self._served, self._any_host = dispatcher, keys, served, any_host
        self._names = names(dispatcher.settings.loaded)

    def app(self) -> Starlette:
        quotas = self._dispatcher.quotas
        routes = [
            Route("/version", self.version),
            Route("/health", self.health),
            Route("/models", self.models),
            Route("/metrics", self.metrics),
            Route("/jobs", OfOwner(self._owner, quotas, self.submit), methods=["POST"]),
            Route("/jobs/{id}", OfOwner(self._owner, quotas, self.status), methods=["GET"]),
            Route("/jobs/{id}", OfOwner(self._owner, quotas, self.cancel), methods=["DELETE"]),
            Route("/jobs/{id}/events", OfOwner(self._owner, quotas, self.events), methods=["GET"]),
            Route("/jobs/{id}/result", OfOwner(self._owner, quotas, self.result), methods=["GET"]),
        ]
        return Starlette(routes=routes, exception_handlers={Refused: _refused, HTTPException: _no_such_place})

    # --- about the server --------------------------------------------------------------------------------------------

    async def version(self, request: Request) -> Response:
        return JSONResponse({"nnzoo": version("nnzoo"), "protocol": VERSION})

    async def health(self, request: Request) -> Response:
        """Status 200 where every model has a worker that is ready, else 503."""
        counts = self._dispatcher.counts()
        ready = all(staff.idle + staff.busy for _, staff in counts.values())
        status = "closing" if self._dispatcher.closing else "ok" if ready else "starting"
        models = {
            name: {"ready": staff.idle + staff.busy, "busy": staff.busy, "starting": staff.starting, "queued": waiting}
            for name, (waiting, staff) in counts.items()
        }
        return JSONResponse({"status": status, "models": models}, 200 if status == "ok" else 503)

    async def models(self, request: Request) -> Response:
        staffs = {name: staff.size for name, (_, staff) in self._dispatcher.counts().items()}
        return JSONResponse([{**asdict(served), "workers": staffs[name]} for name, served in self._served.items()])

    async def metrics(self, request: Request) -> Response:
        return Response(self._dispatcher.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    # --- jobs --------------------------------------------------------------------------------------------------------

    async def submit(self, request: Request, owner: Owner) -> Response:
        """A job, new or sent before under its idempotency key; its answer where it ends within `?wait=`."""
        wait = _seconds(request)
        if self._dispatcher.closing:
            raise Refused(503, "closing", "the server is about to stop, and takes no more jobs", {"Retry-After": "5"})
        media_type = request.headers.get("content-type", "").partition(";")[0].strip()
        if media_type != MEDIA_TYPE:
            raise Refused(415, "media", f"a job is sent as {MEDIA_TYPE}, not as {media_type[:80]!r}")
        idempotency = request.headers.get("idempotency-key")
        if idempotency is not None and not 0 < len(idempotency) <= MOST_IDEMPOTENCY:
            raise Refused(400, "protocol", f"an Idempotency-Key has 1 to {MOST_IDEMPOTENCY} characters")
        dispatcher, settings = self._dispatcher, self._dispatcher.settings
        upload = Upload(dispatcher.store.upload(), owner.digest, dispatcher.quotas)
        try:
            await upload.receive(request, most=settings.limits.request_bytes, patience=settings.patience)
            dispatcher.metrics.received(upload.size)
            before = dispatcher.store.sent_before(owner.digest, idempotency) if idempotency else None
            job = self._queued(upload, owner, idempotency) if before is None else self._sent_before(before, upload)
        except BaseException:
            upload.let_go()
            raise
        return await self._answer(request, job, wait) if wait else self._about(job, 202 if before is None else 200)

    def _queued(self, upload: Upload, owner: Owner, idempotency: str | None) -> Job:
        self._dispatcher.quotas.check(owner.digest)
        return self._dispatcher.submit(
            upload.file,
            owner=owner.digest,
            idempotency=idempotency,
            digest=upload.digest,
            model=self._model(upload.file),
            size=upload.size,
        )

    def _model(self, file: Path) -> str:
        """Which model a request is for; all else in it is the worker's to check."""
        limits = self._dispatcher.settings.limits
        if not file.stat().st_size:
            raise Refused(400, "protocol", "the request is empty")
        try:
            with file.open("rb") as opened, mmap(opened.fileno(), 0, access=ACCESS_READ) as data:
                limits.check("graph_bytes", header_bytes(data, ["request"]))
                _, model = opening(data, kinds=["request"])
        except LimitError as error:
            raise Refused(413, "limit", str(error)) from error
        except ProtocolError as error:
            raise Refused(400, "protocol", str(error)) from error
        if model not in self._names:
            raise Refused(404, "model", f"this server has no model {model!r:.80}; it has {', '.join(self._served)}")
        return self._names[model]

    def _sent_before(self, row: Row, upload: Upload) -> Job | Row:
        if row.digest != upload.digest:
            raise Refused(409, "conflict", "another job was sent under this Idempotency-Key")
        upload.let_go()
        return self._dispatcher.find(row.owner, row.id)

    async def status(self, request: Request, owner: Owner) -> Response:
        return self._about(self._job(request, owner))

    async def cancel(self, request: Request, owner: Owner) -> Response:
        job = self._job(request, owner)
        if isinstance(job, Job):
            self._dispatcher.cancel(job)
        else:
            self._dispatcher.store.forget(job)
        return self._about(job)

    def _about(self, job: Job | Row, status: int = 200) -> Response:
        return JSONResponse(self._dispatcher.about(job), status, _named(job))

    async def events(self, request: Request, owner: Owner) -> Response:
        job, last_seen = self._job(request, owner), request.headers.get("last-event-id", "")
        if last_seen == ENDED:
            return Response(status_code=204)  # by which a browser knows not to come again
        events = self._events(job, last_seen) if isinstance(job, Job) else self._ended(job)
        return EventSourceResponse(events, ping=BETWEEN_PINGS)

    async def _events(self, job: Job, last_seen: str) -> AsyncIterator[ServerSentEvent]:
        async for event in job.events.watch(last_seen):
            yield _event(event.kind, ENDED if event.kind == "end" else job.events.id(event), event.data)

    async def _ended(self, row: Row) -> AsyncIterator[ServerSentEvent]:
        yield _event("end", ENDED, self._dispatcher.about(row))

    async def result(self, request: Request, owner: Owner) -> Response:
        return await self._answer(request, self._job(request, owner), _seconds(request))

    async def _answer(self, request: Request, job: Job | Row, wait: float) -> Response:
        """The answer, as soon as there is one; the status where there is none within the time that one would wait."""
        if isinstance(job, Job):
            await _first([job.released.wait(), _gone(request)], wait)
            job = self._dispatcher.find(job.owner, job.id)
        if isinstance(job, Job):
            return self._about(job, 202)
        if job.answer_size is None:
            raise Refused(410, "gone", "the answer is no longer kept")
        self._dispatcher.metrics.sent(job.answer_size)
        file = self._dispatcher.store.answer(job.id)
        if job.answer_size <= SMALL:
            return Response(file.read_bytes(), media_type=MEDIA_TYPE, headers=_named(job))
        return FileResponse(file, media_type=MEDIA_TYPE, headers=_named(job))

    def _job(self, request: Request, owner: Owner) -> Job | Row:
        return self._dispatcher.find(owner.digest, request.path_params["id"])

    def _owner(self, request: Request) -> Owner:
        """Whose request this is."""
        if not self._any_host and not LOCAL_NAMES.fullmatch(request.headers.get("host", "")):
            raise Refused(421, "host", "without --keys this server answers to localhost and no other name")
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        key = bearer.strip() if scheme.lower() == "bearer" else request.headers.get("ndif-api-key")
        owner = self._keys.owner(key)
        if owner is None:
            raise Refused(
                401,
                "key",
                "this server knows no such key" if key else "this server asks for a key, and none was sent",
                {"WWW-Authenticate": "Bearer"},
            )
        return owner


async def _first(coming: Iterable[Coroutine[Any, Any, Any]], wait: float) -> None:
    """Come back with the first of what comes, or after so many seconds."""
    tasks = [asyncio.ensure_future(one) for one in coming]
    try:
        await asyncio.wait(tasks, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


async def _gone(request: Request) -> None:
    """Comes back when nobody waits for the answer any more."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _named(job: Job | Row) -> dict[str, str]:
    """Where the job is, for who is given its answer by the request that sent it."""
    return {"Location": f"/jobs/{job.id}"}


def _seconds(request: Request) -> float:
    """How long someone would wait for an answer: `?wait=`, up to LONGEST_WAIT."""
    text = request.query_params.get("wait", "0")
    try:
        seconds = float(text)
    except ValueError:
        seconds = nan
    if not 0 <= seconds < inf:
        raise Refused(400, "protocol", f"wait= is a number of seconds, not {text[:40]!r}")
    return min(seconds, LONGEST_WAIT)


def _event(kind: str, id: str, data: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(json.dumps(data), event=kind, id=id)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return JSONResponse({"error": {"code": error.code, "message": str(error)}}, error.status, error.headers)


async def _no_such_place(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    content = {"error": {"code": "http", "message": f"{request.method} {request.url.path}: {error.detail}"}}
    return JSONResponse(content, error.status_code, error.headers)
