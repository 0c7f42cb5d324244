"""Which job runs next, and what becomes of it. Each gets one answer; nothing here waits by looking again and again."""

import asyncio
import logging
import sqlite3
import time
from math import ceil
from pathlib import Path
from typing import Any

from nnzoo.remote.protocol import ProtocolError, opening, pack
from nnzoo.remote.server.job import Job, Run
from nnzoo.remote.server.metrics import Metrics
from nnzoo.remote.server.pauses import Pauses
from nnzoo.remote.server.quotas import Quotas
from nnzoo.remote.server.refusals import unknown_job
from nnzoo.remote.server.settings import Settings
from nnzoo.remote.server.store import CANCELLED, DONE, FAILED, QUEUED, RUNNING, Row, Store
from nnzoo.remote.server.waiting import Waiting
from nnzoo.remote.server.workers import Staff, WorkerLost, Workers

log = logging.getLogger(__name__)
MOST_ATTEMPTS = 2  # where a worker ended that nobody is to blame for
MOST_STARTS = 4  # restarts of the server included
MOST_USELESS = 3  # starts of a model's workers that fail, one after the other, until its jobs are given up
JOINED_BYTES = 2**26  # requests that a worker is given at once have no more together
SMALL = 2**18  # bytes that are read or written at once, without a thread
CANCEL_SECONDS = 2.0  # that a worker has to leave a job by itself
BETWEEN_SWEEPS = 30.0  # seconds
BETWEEN_TRIES = 10.0  # seconds, to write down what became of jobs, where the disk is full


class Dispatcher:
    """The queues of all models, the jobs in them, and those that run."""

    def __init__(self, settings: Settings, store: Store, workers: Workers, metrics: Metrics) -> None:
        self.settings, self.store, self.workers, self.metrics = settings, store, workers, metrics
        self.waiting = {model: Waiting() for model in settings.models}
        self.jobs: dict[str, Job] = {}  # those without an answer
        self.quotas = Quotas(
            jobs=settings.queued_jobs,
            size=settings.queued_bytes,
            per_minute=settings.jobs_per_minute,
            requests=settings.open_requests,
        )
        self.pauses = Pauses()
        self.closing = False
        metrics.watch(self.counts)
        self._runs: set[asyncio.Task[None]] = set()
        self._sweeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Queue what an earlier server left, and start the workers."""
        for row in self.store.recover():
            job = self._enter(row)
            self.quotas.hold(job.owner, job.size, always=True)
            if row.model not in self.waiting:
                self._fail(job, "model", f"the server was started again, without the model {row.model}")
            elif row.attempts >= MOST_STARTS:
                self._fail(job, "worker", f"it was begun {row.attempts} times, and the server ended each time")
            else:
                self.waiting[row.model].add(job)
        if self.jobs:
            log.info("%d jobs wait from before", len(self.jobs))
        self.workers.start(self._dispatch)
        self._sweeper = asyncio.create_task(self._sweep())

    async def drain(self) -> None:
        """Start no more jobs, and let those that run end within the grace; the others stay in the queue."""
        self.closing = True
        if self._runs:
            await asyncio.wait(self._runs, timeout=self.settings.grace)
        for job in self.jobs.values():
            job.release()

    async def stop(self) -> None:
        """End everything; what has no answer is queued again by the next server."""
        tasks = [*self._runs, *([self._sweeper] if self._sweeper else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.workers.stop()
        self.store.close()

    # --- what the owners of jobs ask for -----------------------------------------------------------------------------

    def submit(self, upload: Path, *, owner: str, idempotency: str | None, digest: str, model: str, size: int) -> Job:
        """Queue a request that was uploaded; its bytes are held against the owner's share already."""
        row = self.store.add(upload, owner=owner, idempotency=idempotency, digest=digest, model=model, size=size)
        self.quotas.sent(owner)
        job = self._enter(row)
        self.waiting[model].add(job)
        job.events.add("status", self.about(job))
        self._dispatch(model)
        return job

    def find(self, owner: str, id: str) -> Job | Row:
        """A job of an owner: Refused if there is none."""
        found = self.jobs.get(id) or self.store.find(id)
        if found is None or found.owner != owner:
            raise unknown_job()
        return found

    def about(self, job: Job | Row) -> dict[str, Any]:
        """A job's status, as its owner is told it."""
        return {
            "id": job.id,
            "status": job.status,
            "ahead": self.waiting[job.model].ahead(job) if isinstance(job, Job) and job.status == QUEUED else 0,
            "progress": job.progress if isinstance(job, Job) else None,
            "model": job.model,
            "created": job.created,
        }

    def counts(self) -> dict[str, tuple[int, Staff]]:
        """Of each model, how many jobs wait for a worker, and the workers."""
        return {model: (len(waiting), self.workers.staff(model)) for model, waiting in self.waiting.items()}

    def cancel(self, job: Job) -> None:
        """End a job that has no answer yet: taken out of the queue, or left by its worker, which else is killed."""
        run = job.run
        if job.status == QUEUED:
            self.waiting[job.model].remove(job)
        self._fail(job, "cancelled", "the job was cancelled", CANCELLED)
        if run is not None:
            run.worker.cancel(run.batch.index(job))
            if all(other.run is not run for other in run.batch):
                asyncio.get_running_loop().call_later(CANCEL_SECONDS, run.end)

    # --- running -----------------------------------------------------------------------------------------------------

    def _enter(self, row: Row) -> Job:
        job = self.jobs[row.id] = Job(row)
        self.quotas.job(job.owner, +1)
        return job

    def _dispatch(self, model: str) -> None:
        """Give waiting jobs to idle workers, as far as there are both."""
        waiting, staff = self.waiting[model], self.workers.staff(model)
        if staff.useless >= MOST_USELESS and not staff.idle + staff.busy:
            self._give_up(waiting, f"no worker of {model} can be started; the server's log says why")
        may_run = self.pauses.may_run
        while waiting.any(may_run) and not self.closing and (worker := self.workers.take(model)):
            batch = waiting.take(min(ceil(len(waiting) / staff.size), self.settings.joined), JOINED_BYTES, may_run)
            run = Run(worker, batch)
            run.task = asyncio.create_task(self._run(run))
            self._runs.add(run.task)
            run.task.add_done_callback(self._runs.discard)
            for job in batch:
                self._started(job, run)
        for job in waiting:
            if job.events.watchers:
                job.events.add("status", self.about(job))

    def _give_up(self, waiting: Waiting, reason: str) -> None:
        for job in list(waiting):
            waiting.remove(job)
            self._fail(job, "worker", reason)

    def _started(self, job: Job, run: Run) -> None:
        job.run, job.status = run, RUNNING
        job.attempts += 1
        self.store.started(job.id)
        job.events.add("status", self.about(job))

    async def _run(self, run: Run) -> None:
        """One batch on one worker, which is killed where it does not come to an end."""
        worker, batch, seconds = run.worker, run.batch, self.settings.job_seconds
        try:
            await self._take_answers(run, seconds)
        except asyncio.TimeoutError:
            worker.kill()
            self._settle(run, WorkerLost("timeout", f"no answer within {seconds:g} seconds", by_job=True))
        except WorkerLost as lost:
            self._settle(run, lost)
        except asyncio.CancelledError:  # nobody wants the answers, or the server stops
            worker.kill()
        except Exception:
            log.exception("a worker of %s could not be given its jobs", batch[0].model)
            worker.kill()
            self._settle(run, WorkerLost("worker", "the job could not be run", by_job=True))

    async def _take_answers(self, run: Run, seconds: float) -> None:
        """Give a worker its jobs, and end each with its answer; each answer has its time."""
        requests = await self._requests(run)
        if not requests:
            return self.workers.is_idle(run.worker)
        answers = aiter(run.worker.run(requests, run.report))
        while (got := await asyncio.wait_for(anext(answers, None), seconds)) is not None:
            number, answer = got
            if answer is None:
                self._given_back(run, run.batch[number])
            else:
                await self._answer(run.batch[number], answer)

    async def _requests(self, run: Run) -> list[bytes]:
        """What its worker is given: without jobs that were cancelled while the others were read."""
        read: dict[Job, bytes] = {}
        for job in run.batch:
            try:
                read[job] = await _read(self.store.request(job.id), job.size)
            except FileNotFoundError:
                if not job.has_ended:
                    raise
        run.batch = [job for job in read if not job.has_ended]
        return [read[job] for job in run.batch]

    def _settle(self, run: Run, lost: WorkerLost) -> None:
        """Note what becomes of the jobs whose worker ended: now, or as soon as that can be written down."""
        try:
            self._lost(run, lost)
        except (OSError, sqlite3.Error):
            log.exception("what became of %d jobs cannot be written down", len(run.batch))
            asyncio.get_running_loop().call_later(BETWEEN_TRIES, self._settle, run, lost)

    def _lost(self, run: Run, lost: WorkerLost) -> None:
        """What becomes of the jobs whose worker ended: each runs alone once more, or is answered with the reason."""
        batch, left = run.batch, [job for job in run.batch if job.run is run]
        log.warning("%d jobs of %s lost their worker: %s", len(left), batch[0].model, lost)
        for job in reversed(left):
            if len(batch) > 1 or (not lost.by_job and job.attempts < MOST_ATTEMPTS):
                self._again(job, str(lost))
            else:
                self._fail(job, lost.code, str(lost))
                self._pause(job)
        self._dispatch(batch[0].model)

    def _pause(self, job: Job) -> None:
        """Let the others of its key wait for a job that ended its worker."""
        if pause := self.pauses.lost_a_worker(job.owner):
            log.warning("jobs of the key of job %.8s wait for %.0f s: too many ended their workers", job.id, pause)
            for model in self.waiting:
                asyncio.get_running_loop().call_later(pause + 0.01, self._dispatch, model)

    def _given_back(self, run: Run, job: Job) -> None:
        """Let a job wait again that its worker came to no end with, as those before it took their time."""
        if job.run is run:
            job.attempts, job.alone = job.attempts - 1, True
            self._wait_again(job)
            self._dispatch(job.model)

    def _again(self, job: Job, reason: str) -> None:
        job.alone = True
        job.events.add("log", {"line": f"{reason}: the job runs once more"})
        self._wait_again(job)

    def _wait_again(self, job: Job) -> None:
        """Put a job before the others of its key; their turn comes after those of other keys."""
        self.store.queued_again(job.id, job.attempts)
        job.run, job.status, job.progress = None, QUEUED, None
        self.waiting[job.model].add(job, first=True)
        job.events.add("status", self.about(job))

    # --- answers -----------------------------------------------------------------------------------------------------

    async def _answer(self, job: Job, answer: bytes) -> None:
        """Keep what a worker answered."""
        try:
            kind, _ = opening(answer, kinds=("result", "error"))
        except ProtocolError as error:
            return self._fail(job, "worker", f"what the worker answered is no answer: {error}")
        file = self.store.upload()
        await _write(file, answer)
        self._end(job, DONE if kind == "result" else FAILED, file)

    def _fail(self, job: Job, code: str, message: str, status: str = FAILED) -> None:
        """Answer a job with an error of the server's own."""
        fields = {"type": "RemoteError", "message": message, "line": None, "code": code}
        file = self.store.upload()
        file.write_bytes(pack("error", fields))
        self._end(job, status, file)

    def _end(self, job: Job, status: str, file: Path) -> None:
        """The one place where a job ends; who comes second comes too late."""
        if not self.store.finished(job.id, status, file):
            return
        job.status, job.run = status, None
        del self.jobs[job.id]
        self.quotas.job(job.owner, -1)
        self.quotas.hold(job.owner, -job.size)
        self.metrics.ended(job.model, status, time.time() - job.created)
        log.info("job %.8s of %s: %s after %.3f s", job.id, job.model, status, time.time() - job.created)
        job.events.add("end", self.about(job))
        job.release()
        if self.store.kept_bytes > self.settings.keep_bytes:
            self._clean()

    def _clean(self) -> None:
        self.store.sweep(self.settings.keep_seconds, self.settings.keep_bytes)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(BETWEEN_SWEEPS)
            self._clean()
            self.quotas.sweep()
            self.pauses.sweep()


async def _read(file: Path, size: int) -> bytes:
    return file.read_bytes() if size <= SMALL else await asyncio.to_thread(file.read_bytes)


async def _write(file: Path, data: bytes) -> None:
    if len(data) <= SMALL:
        file.write_bytes(data)
    else:
        await asyncio.to_thread(file.write_bytes, data)
