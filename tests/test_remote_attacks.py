"""What somebody with a valid key tries: to starve others, to see what is theirs, to end the server, to reach files."""

import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx2
import pytest

from nnzoo.remote.protocol import MEDIA_TYPE, pack
from nnzoo.remote.server.pauses import FIRST, FREE, LONGEST, REMEMBERED, Pauses
from remote_http import Client, begun, raw
from remote_jobs import MODEL, job, said
from test_remote_server_parts import Clock, added, waiting

OPEN = 100  # requests of a key at a time


@pytest.fixture
def evil(stand_in, request):
    with Client(stand_in.url, f"evil {request.node.name}") as client:
        yield client


@pytest.fixture
def good(stand_in, request):
    with Client(stand_in.url, f"good {request.node.name}") as client:
        yield client


def answered(connection: socket.socket) -> bytes:
    """All that comes until the server hangs up."""
    data = b""
    with suppress(ConnectionError):
        while part := connection.recv(2**16):
            data += part
    return data


# --- starving others -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["events", "result?wait=60"])
def test_one_key_cannot_take_every_connection(stand_in, evil, good, gate, path):
    id = evil.queue(job("wait", gate=str(gate)))
    held = [raw(stand_in.url, f"GET /jobs/{id}/{path} HTTP/1.1", evil.key) for _ in range(OPEN)]
    for connection in held:
        connection.sendall(b"\r\n")
    for _ in range(200):
        if (refused := evil.get(f"/jobs/{id}")).status_code == 429:
            break
        time.sleep(0.02)
    assert (refused.json()["error"]["code"], refused.headers["Retry-After"]) == ("limit", "1")
    assert f"{OPEN} requests of this key are under way" in refused.json()["error"]["message"]
    assert good.answer(good.queue(job())).kind == "result"
    for connection in held:
        connection.close()
    for _ in range(200):
        if evil.get(f"/jobs/{id}").status_code == 200:
            break
        time.sleep(0.02)
    gate.touch()
    assert evil.answer(id).kind == "result"


def test_jobs_that_end_workers_wait_for_those_of_others(evil, good, tmp_path):
    journal = tmp_path / "journal"
    jobs = [job("segfault", name=str(i), journal=str(journal)) for i in range(FREE + 3)]
    for one in jobs[: FREE + 1]:
        assert evil.answer(evil.queue(one)).fields["code"] == "worker"
    later = [evil.queue(one) for one in jobs[FREE + 1 :]]
    assert said(good.answer(good.queue(job(name="fine")))) == "fine"
    assert [evil.status(id) for id in later] == ["queued", "queued"]
    assert len(begun(journal)) == FREE + 1
    for id in later:
        assert evil.delete(f"/jobs/{id}").status_code == 200


def test_pauses_grow_and_are_forgotten():
    clock = Clock()
    pauses = Pauses(clock)
    given = [pauses.lost_a_worker("me") for _ in range(FREE + 7)]
    assert given[: FREE + 2] == [0.0] * FREE + [FIRST, 2 * FIRST] and given[-1] == LONGEST
    assert not pauses.may_run("me") and pauses.may_run("you")
    clock.now += LONGEST
    assert pauses.may_run("me")
    clock.now += REMEMBERED
    pauses.sweep()
    assert pauses.lost_a_worker("me") == 0.0


def test_who_has_no_pause_goes_before_who_has():
    queue, jobs = waiting("me", "me", "you")
    assert queue.take(8, 100, lambda owner: owner == "you") == jobs[2:]
    assert not queue.any(lambda owner: owner == "you") and len(queue) == 2
    assert queue.take(8, 100) == jobs[:2]


def test_many_small_rows_are_not_kept_for_ever(tmp_path, monkeypatch):
    from nnzoo.remote.server import store as module
    from test_remote_server_parts import answered as given_answer

    monkeypatch.setattr(module, "MOST_ROWS", 3)
    clock = Clock()
    store = module.Store(tmp_path / "jobs", clock)
    rows = [added(store) for _ in range(6)]
    for row in rows:
        given_answer(store, row)
    clock.now += 10
    store.sweep(5.0, 10**9)
    assert [store.find(row.id) is not None for row in rows] == [False] * 3 + [True] * 3
    store.close()


def test_jobs_of_one_key_that_take_long_are_not_run_one_after_the_other(evil, good, gate, tmp_path):
    journal = tmp_path / "journal"
    busy = [evil.queue(job("wait", gate=str(gate))) for _ in range(2)]
    long = [evil.queue(job("sleep", seconds=1.1, name=str(i), journal=str(journal))) for i in range(8)]
    gate.touch()
    while len(begun(journal)) < 2:
        time.sleep(0.01)
    assert said(good.answer(good.queue(job(name="mine", journal=str(journal))))) == "mine"
    assert begun(journal).index("mine") <= 3
    assert [said(evil.answer(id)) for id in long] == [str(i) for i in range(8)]
    assert sorted(begun(journal)) == [*map(str, range(8)), "mine"]
    assert all(evil.answer(id).kind == "result" for id in busy)


# --- requests that are none ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("Transfer-Encoding: chunked", b"411"),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5", b"411"),
        ("Content-Length: 999999999999999", b"413"),
        ("Content-Length: 99999999999999999999999999", b"400"),
        ("Content-Length: -5", b"400"),
        ("Content-Length: 5\r\nContent-Length: 6", b"400"),
        ("X: " + "x" * 200_000, b"400"),
        ("Idempotency-Key: " + "k" * 201 + "\r\nContent-Length: 0", b"400"),
        ("Content-Encoding: gzip\r\nContent-Length: 4", b"400"),
    ],
    ids=["chunked", "both", "large", "larger", "negative", "twice", "header", "key", "gzip"],
)
def test_a_request_that_is_none_is_refused_and_let_go(stand_in, good, headers, status):
    request = f"POST /jobs HTTP/1.1\r\nContent-Type: {MEDIA_TYPE}\r\nConnection: close\r\n{headers}"
    with raw(stand_in.url, request, "evil") as one:
        with suppress(ConnectionError):
            one.sendall(b"\r\n" + b"5\r\nnnzoo\r\n" * 3)
        assert answered(one).startswith(b"HTTP/1.1 " + status)
    assert good.answer(good.queue(job())).kind == "result"


def test_strange_questions_are_answered(evil, stand_in):
    said_before = len(stand_in.log.read_text())
    id = evil.queue(job())
    evil.answer(id)
    era = next(iter(evil.events(id)))[0]
    for last in (f"{era.partition('-')[0]}-{'9' * 5000}", "-", "a" * 1000, "ended-1"):
        assert [kind for _, kind, _ in evil.events(id, last)][-1] == "end"
    for path in ("..%2F..%2Fetc%2Fpasswd", "%00", "%ff", "x" * 5000, f"{id}%0a"):
        assert evil.get(f"/jobs/{path}").status_code == 404, path
    for wait in ("nan", "inf", "-1", "1e400", "9" * 5000, "0x1"):
        assert evil.get(f"/jobs/{id}/result", params={"wait": wait}).status_code == 400, wait
    assert "Traceback" not in stand_in.log.read_text()[said_before:]


def test_an_answer_in_a_thousand_parts_takes_no_time(evil):
    id = evil.queue(job("bytes", size=2_000_000))
    evil.until(id, "done")
    ranges = "bytes=" + ",".join(f"{n}-" for n in range(8000))
    start = time.monotonic()
    evil.get(f"/jobs/{id}/result", headers={"Range": ranges})
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "model", ["../../etc/passwd", "/etc/passwd", "", f"{MODEL}\n2026 INFO owned", "nnzoo/tiny-llama"]
)
def test_a_model_that_is_not_served_is_not_looked_for(evil, stand_in, model):
    response = evil.submit(pack("request", {"model": model, "graph": "{}"}))
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model")
    assert "owned" not in stand_in.log.read_text()


# --- what is others' -------------------------------------------------------------------------------------------------


def test_another_keys_job_cannot_be_told_from_none(evil, good):
    request = job(name="mine")
    id = good.queue(request, Idempotency_Key="shared")
    good.answer(id)
    for ask in (
        lambda id: evil.get(f"/jobs/{id}"),
        lambda id: evil.get(f"/jobs/{id}/result"),
        lambda id: evil.get(f"/jobs/{id}/events", headers={"Last-Event-ID": "ended"}),
        lambda id: evil.delete(f"/jobs/{id}"),
    ):
        theirs, none = ask(id), ask("A" * len(id))
        assert (theirs.status_code, theirs.content) == (none.status_code, none.content) == (404, none.content)
        assert sorted(set(theirs.headers) - {"date"}) == sorted(set(none.headers) - {"date"})
    assert evil.queue(request, Idempotency_Key="shared") != id
    assert said(good.answer(id)) == "mine"


def test_what_anybody_may_ask_says_nothing_of_keys_or_jobs(stand_in, good):
    id = good.queue(job(name="mine"))
    good.answer(id)
    for path in ("version", "health", "models", "metrics"):
        text = httpx2.get(f"{stand_in.url}/{path}").text
        assert id not in text and good.key not in text and "good" not in text
    assert all(not os.stat(file).st_mode & 0o077 for file in (stand_in.data, *stand_in.data.rglob("*")))


def test_a_flood_of_one_key_keeps_the_turns_of_others(evil, good, gate):
    with ThreadPoolExecutor(4) as pool:
        busy = [evil.queue(job("wait", gate=str(gate))) for _ in range(2)]
        flood = [*pool.map(lambda _: evil.queue(job("sleep", seconds=0.05)), range(60))]
        mine = good.queue(job(name="mine"))
        ahead = good.get(f"/jobs/{mine}").json()["ahead"]
        gate.touch()
        assert said(good.answer(mine)) == "mine"
        assert ahead <= 2 and sum(evil.status(id) == "queued" for id in flood) > 20
        for id in (*busy, *flood):
            evil.delete(f"/jobs/{id}")
