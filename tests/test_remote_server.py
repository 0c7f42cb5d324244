"""The server's HTTP interface: what it says of itself, sending, watching, fetching and cancelling jobs."""

import time

import httpx2
import pytest

from nnzoo.remote.protocol import MEDIA_TYPE, VERSION, unpack
from remote_http import Client, begun
from remote_jobs import MODEL, job, said


@pytest.fixture
def client(stand_in):
    with Client(stand_in.url) as client:
        yield client


@pytest.fixture
def other(stand_in):
    with Client(stand_in.url, key="another key") as client:
        yield client


# --- about the server ------------------------------------------------------------------------------------------------


def test_a_server_says_its_version_models_and_health(client):
    assert client.get("/version").json()["protocol"] == VERSION
    (model,) = client.get("/models").json()
    assert (model["name"], model["kind"], model["n_layers"], model["workers"]) == (MODEL, "gpt2", 4, 2)
    assert client.get("/health").json()["status"] == "ok"


def test_metrics_count_jobs_seconds_and_bytes(client):
    client.answer(client.queue(job()))
    text = client.get("/metrics").text
    assert f'nnzoo_jobs_total{{model="{MODEL}",status="done"}}' in text
    assert f'nnzoo_workers{{model="{MODEL}",state="idle"}}' in text
    for name in ("nnzoo_jobs_queued", "nnzoo_job_seconds_bucket", "nnzoo_bytes_total", "nnzoo_worker_restarts_total"):
        assert f"\n{name}{{" in text


# --- jobs that are taken ---------------------------------------------------------------------------------------------


def test_an_answer_comes_once_or_again(client):
    id = client.queue(job(name="once"))
    assert said(client.answer(id)) == "once"
    assert said(client.answer(id)) == "once"
    assert client.get(f"/jobs/{id}").json()["status"] == "done"


def test_who_sends_a_job_and_waits_gets_its_answer_at_once(client):
    for _ in range(2):  # sent again, its answer comes again
        response = client.submit(job(name="quick"), wait=20, Idempotency_Key="quick")
        assert (response.status_code, response.headers["Content-Type"]) == (200, MEDIA_TYPE)
        assert said(unpack(response.content, kinds=["result"])) == "quick"
        assert client.get(response.headers["Location"]).json()["status"] == "done"


def test_who_sends_a_job_that_takes_longer_than_the_wait_gets_its_status(client, gate):
    request = job("wait", gate=str(gate))
    for _ in range(2):
        response = client.submit(request, wait=0.05, Idempotency_Key="longer")
        assert (response.status_code, response.json()["status"]) == (202, "running")
        assert response.headers["Location"] == f"/jobs/{response.json()['id']}"
    gate.touch()
    again = client.submit(request, wait=20, Idempotency_Key="longer")
    assert unpack(again.content, kinds=["result"])


def test_an_answer_that_is_an_error_makes_a_failed_job(client):
    id = client.queue(job("fail"))
    assert client.answer(id).kind == "error"
    assert client.status(id) == "failed"


def test_who_does_not_wait_is_told_the_status(client, gate):
    id = client.queue(job("wait", gate=str(gate)))
    response = client.get(f"/jobs/{id}/result")
    assert (response.status_code, response.json()["status"]) == (202, "running")
    gate.touch()
    assert client.answer(id).kind == "result"


def test_a_small_wait_ends_without_the_job(client, gate):
    id = client.queue(job("wait", gate=str(gate)))
    start = time.monotonic()
    assert client.get(f"/jobs/{id}/result", params={"wait": 0.2}).status_code == 202
    assert time.monotonic() - start >= 0.2
    gate.touch()
    client.answer(id)


def test_a_large_answer_arrives_whole(client):
    answer = client.answer(client.queue(job("bytes", size=3_000_000)))
    assert answer.tensors["t"].shape == (3_000_000,)


def test_a_job_sent_twice_under_one_idempotency_key_runs_once(client, other, tmp_path):
    request = job(name="only", journal=str(tmp_path / "journal"))
    first, second = (client.submit(request, Idempotency_Key="one") for _ in range(2))
    assert (first.status_code, second.status_code) == (202, 200)
    assert first.json()["id"] == second.json()["id"]
    client.answer(first.json()["id"])
    assert client.queue(request, Idempotency_Key="one") == first.json()["id"]
    assert begun(tmp_path / "journal") == ["only"]
    assert other.queue(request, Idempotency_Key="one") != first.json()["id"]


def test_another_job_under_the_same_idempotency_key_is_a_conflict(client):
    client.queue(job(name="a"), Idempotency_Key="two")
    response = client.submit(job(name="b"), Idempotency_Key="two")
    assert (response.status_code, response.json()["error"]["code"]) == (409, "conflict")


def test_jobs_that_are_cancelled_while_they_start_take_no_worker_with_them(client, stand_in):
    before = stand_in.workers()
    for _ in range(20):
        ids = [client.queue(job("sleep", seconds=0.02, padding=300_000 * "x")) for _ in range(4)]
        for id in ids:
            client.delete(f"/jobs/{id}")
    assert said(client.answer(client.queue(job(name="after")))) == "after"
    assert stand_in.workers() == before


# --- events ----------------------------------------------------------------------------------------------------------


def test_events_tell_of_a_job_until_its_end(client, gate):
    events = []
    for event in client.events(client.queue(job("wait", gate=str(gate)))):
        events.append(event)
        if event[1] == "progress":
            gate.touch()
    kinds = [kind for _, kind, _ in events]
    assert kinds[0] == "status"
    assert "progress" in kinds
    assert kinds[-1] == "end"
    assert events[-1][2]["status"] == "done"
    assert next(data for _, kind, data in events if kind == "progress")["n_layers"] == 4


def test_who_comes_again_gets_what_was_missed_and_nothing_twice(client, gate):
    id = client.queue(job("wait", gate=str(gate)))
    early = list(client.events(id, most=2))
    gate.touch()
    late = list(client.events(id, last_seen=early[-1][0]))
    assert not {id for id, _, _ in early} & {id for id, _, _ in late}
    assert late[-1][1] == "end"
    assert client.get(f"/jobs/{id}/events", headers={"Last-Event-ID": late[-1][0]}).status_code == 204


def test_the_events_of_a_finished_job_are_its_end(client):
    id = client.queue(job())
    client.answer(id)
    assert [kind for _, kind, _ in client.events(id, last_seen="of-another-life-7")] == ["end"]


def test_a_job_that_waits_is_told_how_many_are_ahead(client, gate):
    ids = [client.queue(job("wait", gate=str(gate))) for _ in range(4)]
    assert [client.get(f"/jobs/{id}").json()["ahead"] for id in ids] == [0, 0, 0, 1]
    statuses = []
    for _, kind, data in client.events(ids[-1]):
        if kind == "status":
            statuses.append((data["status"], data["ahead"]))
        gate.touch()
    assert statuses[0] == ("queued", 1)
    assert statuses[-1] == ("running", 0)


# --- cancelling and forgetting ---------------------------------------------------------------------------------------


def test_a_job_that_waits_is_cancelled_and_never_begun(client, tmp_path, gate):
    busy = [client.queue(job("wait", gate=str(gate))) for _ in range(2)]
    id = client.queue(job(name="never", journal=str(tmp_path / "journal")))
    assert client.delete(f"/jobs/{id}").json()["status"] == "cancelled"
    assert client.answer(id).fields["code"] == "cancelled"
    gate.touch()
    assert all(client.answer(one).kind == "result" for one in busy)
    assert begun(tmp_path / "journal") == []


def test_a_job_that_runs_is_cancelled_and_its_worker_works_on(client, stand_in):
    before = set(stand_in.workers())
    id = client.queue(job("wait"))
    assert any(kind == "progress" for _, kind, _ in client.events(id, most=2))
    client.delete(f"/jobs/{id}")
    assert client.answer(id).fields["code"] == "cancelled"
    ids = [client.queue(job("sleep", seconds=0.1)) for _ in range(2)]
    assert all(client.answer(one).kind == "result" for one in ids)
    assert set(stand_in.workers()) == before


def test_a_job_that_listens_to_nobody_is_cancelled_with_its_worker(client, stand_in):
    before = set(stand_in.workers())
    id = client.queue(job("hang", seconds=60))
    client.until(id, "running")
    client.delete(f"/jobs/{id}")
    assert client.answer(id).fields["code"] == "cancelled"
    for _ in range(200):
        if len(set(stand_in.workers()) & before) == 1:
            break
        time.sleep(0.05)
    assert len(set(stand_in.workers()) & before) == 1
    assert client.answer(client.queue(job())).kind == "result"


def test_a_finished_job_is_forgotten(client):
    id = client.queue(job())
    client.answer(id)
    assert client.delete(f"/jobs/{id}").status_code == 200
    response = client.get(f"/jobs/{id}/result")
    assert (response.status_code, response.json()["error"]["code"]) == (410, "gone")
    assert client.status(id) == "done"


# --- whose jobs are whose --------------------------------------------------------------------------------------------


def test_anothers_job_is_answered_as_one_that_is_not_there(client, other):
    id = client.queue(job())
    client.answer(id)
    for method, path in [("GET", ""), ("GET", "/events"), ("GET", "/result?wait=1"), ("DELETE", "")]:
        anothers, nobodys = (other.request(method, f"/jobs/{one}{path}") for one in (id, "x" * len(id)))
        assert anothers.status_code == 404
        assert (anothers.status_code, anothers.content) == (nobodys.status_code, nobodys.content)
    assert client.answer(id).kind == "result"


def test_a_key_comes_in_either_header(client, stand_in):
    id = client.queue(job())
    answer = httpx2.get(f"{stand_in.url}/jobs/{id}", headers={"ndif-api-key": "key"})
    assert answer.status_code == 200


def test_without_keys_a_page_of_the_web_cannot_pass_itself_off_as_this_machine(client):
    response = client.get("/jobs/x", headers={"Host": "rebound.example:80"})
    assert (response.status_code, response.json()["error"]["code"]) == (421, "host")


# --- requests that are refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (b"", "the request is empty"),
        (b"GIF89a" + bytes(100), "no message of nnzoo's protocol"),
        (job()[:40], "ends early"),
        (job().replace(b"nnzoo\0\1\0", b"nnzoo\0\2\0", 1), "version 2"),
    ],
    ids=["empty", "picture", "cut", "version"],
)
def test_what_is_no_request_is_refused_with_the_reason(client, request_, message):
    response = client.submit(request_)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "protocol")
    assert message in response.json()["error"]["message"]


def test_another_media_type_is_refused(client):
    response = client.submit(job(), Content_Type="application/json")
    assert (response.status_code, response.json()["error"]["code"]) == (415, "media")


def test_an_unknown_model_is_refused_with_those_that_are_there(client):
    response = client.submit(job(model="gpt-5"))
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model")
    assert MODEL in response.json()["error"]["message"]


@pytest.mark.parametrize("wait", ["-1", "nan", "inf", "soon"])
def test_a_wait_that_is_none_is_refused(client, wait):
    response = client.get(f"/jobs/{client.queue(job())}/result", params={"wait": wait})
    assert response.status_code == 400


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nothing", 404), ("PUT", "/jobs", 405)])
def test_places_that_are_none_answer_in_the_same_form(client, method, path, status):
    response = client.request(method, path)
    assert (response.status_code, response.json()["error"]["code"]) == (status, "http")
