"""Jobs that nobody waits for: awaited in a notebook, picked up elsewhere, and what is said when one failed."""

import asyncio
import pickle
import re
import subprocess
import sys
import time
from typing import Any

import httpx2
import pytest
import torch

from nnzoo import CONFIG, LanguageModel
from nnzoo.remote.errors import JobGone
from nnzoo.remote.job import Job, Status, pick_up
from nnzoo.tracing.recorder import TraceError
from remote_http import Client
from remote_jobs import job
from remote_stand_in import StandIn

NAME = "nnzoo/tiny-gpt2"
OUTSIDE = torch.tensor([10**6])


@pytest.fixture
def here():
    with StandIn(**{NAME: LanguageModel(NAME)}).configured() as server:
        yield server


@pytest.fixture
def there(server, monkeypatch):
    monkeypatch.setattr(CONFIG.API, "_settings", type(CONFIG.API._settings)())
    monkeypatch.setattr(CONFIG.API, "connections", {})
    CONFIG.API.HOST = server.url
    return server


def sent(blocking: bool = False) -> tuple[Any, torch.Tensor, torch.Tensor]:
    model = LanguageModel(NAME)
    with model.trace("The keys", remote=True, blocking=blocking) as tracer:
        hidden = model.transformer.h[1].output[0].save()
        hidden.norm().backward()
        logits = model.output.save()
        hidden.grad.save()
    return tracer.job, hidden, logits


# --- picked up by another process ------------------------------------------------------------------------------------


def test_a_pickled_job_gives_its_values_in_another_process(there):
    job, hidden, logits = sent()
    program = "import pickle, sys; print([v.shape for v in pickle.load(sys.stdin.buffer).result(60)])"
    found = subprocess.run([sys.executable, "-c", program], input=pickle.dumps(job), capture_output=True, check=True)
    job.result()
    assert found.stdout.decode().strip() == str([hidden.shape, logits.shape, hidden.grad.shape])


def test_a_job_is_picked_up_by_its_id_before_it_is_over_and_after(here):
    here.is_stopped = True
    job, hidden, logits = sent()
    again = pick_up(job.id)
    assert again.status() is Status.QUEUED
    here.run(here.jobs[job.id])
    values = again.result()
    job.result()
    assert all(torch.equal(one, other) for one, other in zip(values, (hidden, logits, hidden.grad), strict=True))
    assert torch.equal(values[0].grad, hidden.grad)
    assert pickle.loads(pickle.dumps(again)).result()[1].equal(logits)


def test_a_job_that_is_not_there_cannot_be_picked_up(here):
    with pytest.raises(JobGone):
        pick_up("j77").result()


# --- in a notebook, whose loop runs ----------------------------------------------------------------------------------


def test_jobs_are_awaited_together_while_a_loop_runs(here):
    async def cell() -> list:
        jobs = [sent()[0] for _ in range(3)]
        return await asyncio.gather(*jobs), [job.result() for job in jobs]

    awaited, results = asyncio.run(cell())
    assert [len(values) for values in awaited] == [3, 3, 3]
    assert all(one is other for one, other in zip(awaited, results, strict=True))


def test_who_awaits_no_more_is_not_kept(stand_in, gate):
    with Client(stand_in.url) as http:
        id = http.queue(job("wait", gate=str(gate)))
    waiting = pick_up(id, stand_in.url)
    waiting.client._http.headers["Authorization"] = "Bearer key"

    async def cell() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(waiting, 0.1)

    start = time.monotonic()
    asyncio.run(cell())  # which waits for the threads that were begun
    assert time.monotonic() - start < 10
    assert not waiting.status().is_over
    waiting.cancel()


# --- one that failed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocking", [True, False])
@pytest.mark.parametrize("lost", [True, False], ids=["never sent", "failed there"])
def test_what_a_failed_job_was_to_save_says_so_when_it_is_read(here, blocking, lost):
    model = LanguageModel(NAME)
    here.faults = [httpx2.Response(413, json={"error": {"code": "limit", "message": "too much"}})] if lost else []
    with pytest.raises(Exception, match="too much" if lost else "out of bounds") as raised:
        with model.trace("The keys", remote=True, blocking=blocking) as tracer:
            cache = tracer.cache()
            hidden = model.transformer.h[0].output[0][..., OUTSIDE].save()
        tracer.job.result()
    said = rf"ended with an error.*{re.escape(str(raised.value))}"
    for read in (lambda: cache["transformer.h.0"].output, lambda: hidden + 1, lambda: print(hidden)):
        with pytest.raises(TraceError, match=said):
            read()


def test_a_cache_whose_job_is_interrupted_is_not_empty(here, monkeypatch):
    here.is_stopped = True
    monkeypatch.setattr(Job, "_ask", lambda job, wait: (_ for _ in ()).throw(KeyboardInterrupt))
    model = LanguageModel(NAME)
    with pytest.raises(KeyboardInterrupt), model.trace("The keys", remote=True) as tracer:
        cache = tracer.cache()
    with pytest.raises(TraceError, match="KeyboardInterrupt"):
        cache["transformer.h.0"].output
