"""The client of a server: requests that may be repeated, jobs, settings, and what is said when something is wrong."""

import asyncio
import json
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from nnzoo import CONFIG, LanguageModel
from nnzoo.config import Config
from nnzoo.remote.client import ATTEMPTS, Client, connect
from nnzoo.remote.errors import (
    JobCancelled,
    JobGone,
    LimitExceeded,
    NoServer,
    RemoteError,
    Unauthorized,
    UnknownModel,
    failure,
)
from nnzoo.remote.job import Job, Status
from nnzoo.remote.progress import Display
from nnzoo.remote.protocol import ProtocolError
from nnzoo.tracing.recorder import TraceError
from remote_stand_in import HOST, StandIn, refused
from test_layers import modules_after

NAME = "nnzoo/tiny-gpt2"


@pytest.fixture
def server() -> Iterator[StandIn]:
    with StandIn(**{NAME: LanguageModel(NAME)}).configured() as server:
        yield server


def send(**how: Any) -> Any:
    model = LanguageModel(NAME)
    with model.trace("The keys", remote=True, **how) as tracer:
        logits = model.output.save()
    return tracer if how else logits


def job_of(server: StandIn) -> Job:
    """One that is in the queue."""
    server.is_stopped = True
    return send(blocking=False).job


# --- one job, however often it is sent -------------------------------------------------------------------------------


def lost(server: StandIn) -> Any:
    """The server takes a request; its answer does not come through."""

    def take(request: httpx2.Request) -> Exception:
        server.answer(request)
        return httpx2.ReadError("gone")

    return take


@pytest.mark.parametrize(
    "fault",
    [
        httpx2.ConnectError("refused"),
        httpx2.ReadTimeout("slow"),
        httpx2.RemoteProtocolError("cut"),
        refused(429, "busy", "later"),
        refused(502, "gateway", "no"),
        refused(503, "closing", "no"),
        refused(504, "gateway", "no"),
        lost,
    ],
    ids=lambda fault: getattr(fault, "__name__", None) or str(getattr(fault, "status_code", type(fault).__name__)),
)
def test_a_request_is_sent_again_and_its_job_runs_once(server, pauses, fault):
    server.faults = [fault(server) if fault is lost else fault] * 2 if fault is not lost else [fault(server)]
    assert send().shape[0] == 1
    assert server.runs == len(server.jobs) == 1 and pauses
    assert server.asked.count("POST /jobs") == (3 if fault is not lost else 3 - 0)


def test_pauses_grow_and_are_random(server, pauses):
    server.faults = [httpx2.ConnectError("refused")] * (ATTEMPTS - 1)
    send()
    assert len(set(pauses)) == len(pauses) == ATTEMPTS - 1
    assert all(0 <= pause <= 0.1 * 2**attempt for attempt, pause in enumerate(pauses, 1))


def test_a_server_says_how_long_to_wait(server, pauses):
    server.faults = [refused(429, "busy", "later", **{"Retry-After": "3"})]
    send()
    assert 3 <= pauses[0] < 4


@pytest.mark.parametrize(
    ("asked", "date", "seconds"),
    [
        ("Tue, 01 Dec 2026 10:00:07 GMT", "Tue, 01 Dec 2026 10:00:00 GMT", 7),  # by the clock of who asks for it
        ("Tue, 01 Dec 2026 10:00:00 GMT", "Tue, 01 Dec 2026 10:00:07 GMT", 0),
        ("Tue, 01 Dec 2099 10:00:00 GMT", None, 600),
        ("soon", None, 0),
        ("Tue, 99 Dec 2026", None, 0),
    ],
)
def test_until_when_to_wait_may_be_a_date(server, pauses, asked, date, seconds):
    server.faults = [refused(503, "busy", "later", **{"Retry-After": asked}, **({"Date": date} if date else {}))]
    send()
    assert seconds <= pauses[0] < seconds + 1


def test_it_is_given_up_when_nobody_answers(server, pauses):
    server.faults = [httpx2.ConnectError("refused")] * ATTEMPTS
    with pytest.raises(NoServer, match=rf"{HOST} does not answer \(refused\); does a server run there"):
        send()
    assert not server.jobs


def test_an_answer_that_is_there_soon_comes_with_the_request(server):
    send()
    assert server.asked == ["POST /jobs"]


@pytest.mark.parametrize("came", [True, False], ids=["after it came", "before it came"])
def test_a_job_whose_sending_is_interrupted_is_cancelled(server, came):
    def interrupted(request: httpx2.Request) -> None:
        if came:
            server.answer(request)
        raise KeyboardInterrupt

    server.is_stopped, server.faults = True, [interrupted]
    with pytest.raises(KeyboardInterrupt):
        send()
    assert [job["status"] for job in server.jobs.values()] == ["cancelled"]


def test_two_traces_are_two_jobs(server):
    send(), send()
    assert server.runs == 2


# --- what is refused -------------------------------------------------------------------------------------------------


def test_without_a_host_it_says_how_to_have_one(monkeypatch, tmp_path):
    monkeypatch.delenv("NDIF_HOST", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    with pytest.raises(NoServer, match=r"nnzoo serve MODEL.*CONFIG\.API\.HOST"):
        LanguageModel(NAME).trace("The keys", remote=True)


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (refused(401, "key", "no such key"), Unauthorized, "no such key; a key is set by CONFIG.set_default_api_key"),
        (refused(413, "limit", "256 MB at most"), LimitExceeded, "256 MB at most"),
        (refused(400, "protocol", "version 2; update the older side"), ProtocolError, "update the older side"),
        (refused(409, "conflict", "another body"), RemoteError, "another body"),
        (httpx2.Response(413, html="<h1>Too large</h1>"), LimitExceeded, "Too Large with a page of its own"),
        (httpx2.Response(500, text="<html>oops"), RemoteError, "answers 500 Internal Server Error: <html>oops"),
    ],
    ids=lambda value: getattr(value, "__name__", None) or str(getattr(value, "status_code", "")),
)
def test_a_refusal_is_an_exception_of_its_own(server, answer, error, said):
    server.faults = [answer]
    with pytest.raises(error, match=said):
        send()


def test_a_model_that_is_not_served_is_named_with_those_that_are(server):
    model = LanguageModel("nnzoo/tiny-llama")
    with pytest.raises(UnknownModel, match="no model 'nnzoo/tiny-llama'; it has nnzoo/tiny-gpt2"):
        with model.trace("The keys", remote=True):
            logits = model.output.save()
    with pytest.raises(TraceError, match="was never computed: it belongs to a trace that ended with an error"):
        _ = logits + 1


def test_a_result_of_another_version_says_who_is_to_update(server):
    def newer(request: httpx2.Request) -> httpx2.Response:
        answer = server.answer(request)
        data = answer.content
        return httpx2.Response(200, content=data[:6] + b"\x02\x00" + data[8:], headers=answer.headers)

    server.faults = [newer]
    with pytest.raises(ProtocolError, match=r"version 2 of nnzoo's protocol, this client version 1: update the client"):
        send()


def test_errors_of_a_run_are_of_classes_that_are_known():
    def fields(kind: str, code: str = "run") -> dict[str, Any]:
        return {"type": kind, "message": "m", "line": ["a.py", 7, "f"], "code": code}

    assert type(failure(fields("IndexError"))) is IndexError
    assert type(failure(fields("TraceError", "limit"))) is LimitExceeded
    for name in ("SystemExit", "KeyboardInterrupt", "open"):  # a server raises nothing of its choice
        assert type(failure(fields(name))) is RemoteError and name in str(failure(fields(name)))
    error = failure(fields("ValueError"))
    assert str(error) == "m" and str(error.line) == "a.py:7, in f"
    assert str(failure(fields("TraceError", "limit"))) == "m (recorded at a.py:7, in f)"


def test_an_address_is_one(monkeypatch):
    with pytest.raises(ValueError, match="begins with http"):
        Client("localhost:8000")


def test_a_connection_is_kept(monkeypatch):
    monkeypatch.setattr(CONFIG.API, "connections", {})
    first = connect("http://127.0.0.1:1")
    assert connect("http://127.0.0.1:1") is first and connect("http://127.0.0.1:2") is not first
    monkeypatch.setenv("NDIF_API_KEY", "another")
    assert connect("http://127.0.0.1:1") is not first


# --- jobs ------------------------------------------------------------------------------------------------------------


def test_a_job_is_asked_waited_for_and_awaited(server):
    job = job_of(server)
    assert job.status() is Status.QUEUED and not job.status().is_over
    with pytest.raises(TimeoutError, match=f"job {job.id} is not over yet"):
        job.result(timeout=0)
    server.run(server.jobs[job.id])
    assert job.status() is Status.DONE is Status.COMPLETED
    (logits,) = asyncio.run(_awaited(job))
    assert logits.shape[0] == 1 and job.result()[0] is logits


async def _awaited(job: Job) -> Any:
    return await job


def test_a_job_is_cancelled(server):
    job = job_of(server)
    job.cancel()
    assert job.status() is Status.CANCELLED and server.asked[-1] == f"DELETE /jobs/{job.id}"
    with pytest.raises(JobCancelled):
        job.result()


def test_an_interruption_cancels(server, monkeypatch):
    job = job_of(server)
    server.faults = [lambda request: (_ for _ in ()).throw(KeyboardInterrupt)]
    with pytest.raises(KeyboardInterrupt):
        job.result()
    assert server.jobs[job.id]["status"] == "cancelled"


def test_an_unknown_job_is_gone(server):
    with pytest.raises(JobGone):
        server.client.status("j77")


def test_events_go_on_after_the_last_one_that_came(server, pauses):
    job, asked = job_of(server), []

    def some(text: str) -> Any:
        def answer(request: httpx2.Request) -> httpx2.Response:
            asked.append(request.headers.get("Last-Event-ID"))
            return httpx2.Response(200, text=text, headers={"Content-Type": "text/event-stream"})

        return answer

    progress = {"layer": 3, "n_layers": 4, "token": None, "n_tokens": None}
    server.faults = [
        some('id: 1\nevent: status\ndata: {"status": "running"}\n\nid: 2\nevent: log\ndata: {"line": "it runs"}\n\n'),
        httpx2.ReadError("cut"),
        some(f"id: 3\nevent: progress\ndata: {json.dumps(progress)}\n\n"),
        some('id: 4\nevent: end\ndata: {"status": "done"}\n\n'),
    ]
    assert [event.name for event in job.events()] == ["status", "log", "progress", "end"]
    assert asked == [None, "2", "3"]
    assert (job.logs, job.progress, job._status) == (["it runs"], progress, Status.DONE)


# --- what is shown ---------------------------------------------------------------------------------------------------


class Terminal:
    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("logging", [True, False])
def test_a_terminal_sees_how_a_job_comes_on(monkeypatch, logging):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setattr(CONFIG.APP, "_settings", Config()._settings)
    CONFIG.APP.REMOTE_LOGGING = logging
    with Display() as display:
        display.show("queued", 2, None)
        display.show("running", 0, {"token": 4, "n_tokens": 10, "layer": 0, "n_layers": 4})
    assert ("queued, 2 ahead" in terminal.text and "token 5 of 10, layer 1 of 4" in terminal.text) == logging
    assert logging or not terminal.text


def test_a_file_sees_nothing(server, capfd):
    send()
    assert capfd.readouterr() == ("", "")


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.delenv("NDIF_HOST", raising=False)
    monkeypatch.delenv("NDIF_API_KEY", raising=False)
    return tmp_path


def test_what_is_set_here_goes_before_the_environment_and_that_before_the_file(folder, monkeypatch):
    Config().save()  # of nothing, which harms nobody
    config = Config()
    config.API.HOST, config.API.APIKEY, config.APP.REMOTE_LOGGING = "http://saved", "a key", False
    config.save()
    config = Config()
    assert (config.API.HOST, config.API.APIKEY, config.APP.REMOTE_LOGGING) == ("http://saved", "a key", False)
    monkeypatch.setenv("NDIF_HOST", "http://environment")
    assert config.API.HOST == "http://environment"
    config.API.HOST = "http://here"
    assert config.API.HOST == "http://here"
    config.API.HOST = None
    assert config.API.HOST == "http://environment"


def test_the_file_is_its_owners_alone_and_has_no_secret_of_the_environment(folder, monkeypatch):
    monkeypatch.setenv("NDIF_API_KEY", "secret")
    config = Config()
    config.API.HOST = "http://here"
    file = config.save()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert json.loads(file.read_text()) == {"API.HOST": "http://here"}
    assert [one.name for one in file.parent.iterdir()] == ["config.json"], "nothing is left beside it"
    assert "secret" not in repr(config)


@pytest.mark.parametrize("text", ["{", "[]", '{"API.HOST": 3}'])
def test_a_broken_file_is_named(folder, text):
    file = Config().save()
    file.write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        Config().API.HOST


def test_settings_have_types(folder):
    with pytest.raises(TypeError, match=r"CONFIG\.API\.HOST is a str, not int"):
        Config()._settings.set("API.HOST", 8000)


def test_importing_nnzoo_imports_no_http():
    loaded = modules_after("import nnzoo; nnzoo.CONFIG.API.HOST")
    assert not {"httpx2", "msgpack", "nnzoo.remote"} & loaded
