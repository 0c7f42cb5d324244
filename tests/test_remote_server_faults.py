"""What goes wrong around a server: those that are killed, jobs that do not end, clients that stand still."""

import os
import signal
import time

import httpx2
import pytest

from nnzoo.cli import main
from nnzoo.remote.protocol import MEDIA_TYPE
from nnzoo.remote.server.keys import new_key
from remote_http import Client, begun, connected, raw
from remote_jobs import job, said
from remote_server import Server


@pytest.fixture
def client(stand_in, request):
    with Client(stand_in.url, request.node.name) as client:  # who ends workers waits: each test for itself
        yield client


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    return tmp_path_factory.mktemp("keys") / "keys.txt"


@pytest.fixture(scope="module")
def key(keys):
    return new_key(keys, "alice")


@pytest.fixture(scope="module")
def tight(keys, key):
    """A server with one worker that gives little of everything, and asks for keys."""
    options = {"workers": 1, "seconds": 4, "worker_memory": "350M", "request_bytes": "100K", "queued_jobs": 3}
    with Server(keys=keys, runner="remote_jobs:answers", patience=1, grace=20, **options) as running:
        yield running


@pytest.fixture
def limited(tight, key):
    with Client(tight.url, key) as client:
        yield client


# --- workers that end ------------------------------------------------------------------------------------------------


def worker_of(journal) -> int:
    """The process in which the job that was begun last runs."""
    while not (journal.exists() and journal.read_text().endswith("\n")):
        time.sleep(0.01)
    return int(journal.read_text().split()[-2])


def test_a_job_whose_worker_is_killed_runs_once_more(client, tmp_path, gate):
    journal = tmp_path / "journal"
    id = client.queue(job("wait", gate=str(gate), name="again", journal=str(journal)))
    os.kill(worker_of(journal), signal.SIGKILL)
    gate.touch()
    assert client.answer(id).kind == "result"
    assert begun(journal) == ["again", "again"]


def test_a_job_whose_worker_is_killed_twice_is_answered_with_an_error(client, tmp_path):
    journal = tmp_path / "journal"
    id = client.queue(job("wait", name="twice", journal=str(journal)))
    os.kill(worker_of(journal), signal.SIGKILL)
    while len(begun(journal)) < 2:
        time.sleep(0.01)
    os.kill(worker_of(journal), signal.SIGKILL)
    answer = client.answer(id)
    assert answer.fields["code"] == "worker"
    assert "SIGKILL" in answer.fields["message"]


def test_to_be_given_back_is_not_to_be_begun(limited, tmp_path, gate):
    journal, busy = tmp_path / "journal", limited.queue(job("wait", gate=str(gate)))
    long = limited.queue(job("sleep", seconds=1.1))
    id = limited.queue(job("sleep", seconds=0.5, name="last", journal=str(journal)))
    gate.touch()
    os.kill(worker_of(journal), signal.SIGKILL)
    assert [limited.answer(one).kind for one in (busy, long, id)] == ["result"] * 3
    assert begun(journal) == ["last"] * 2


def test_a_worker_that_can_run_nothing_more_is_replaced_and_its_jobs_run_once_more(client, tmp_path, gate):
    journal = tmp_path / "journal"
    busy = [client.queue(job("wait", gate=str(gate))) for _ in range(2)]
    broken = client.queue(job("break", name="broken", journal=str(journal)))
    others = [client.queue(job(name=str(i))) for i in range(4)]
    gate.touch()
    assert client.answer(broken).fields["code"] == "worker"
    assert 2 <= begun(journal).count("broken") <= 3  # with others, then alone
    assert all(client.answer(one).kind == "result" for one in [*busy, *others])


def test_a_job_that_crashes_its_worker_harms_no_other(client, tmp_path, gate):
    journal = str(tmp_path / "journal")
    busy = [client.queue(job("wait", gate=str(gate))) for _ in range(2)]
    names = ["a", "b", "bad", "c", "d", "e"]
    ids = {n: client.queue(job("segfault" if n == "bad" else "answer", name=n, journal=journal)) for n in names}
    gate.touch()
    answers = {name: client.answer(id) for name, id in ids.items()}
    assert {name for name, answer in answers.items() if answer.kind == "error"} == {"bad"}
    assert answers["bad"].fields["code"] == "worker"
    assert all(said(answers[name]) == name for name in names if name != "bad")
    assert begun(tmp_path / "journal").count("bad") <= 2
    assert all(client.answer(one).kind == "result" for one in busy)


def test_jobs_that_wait_together_are_given_to_a_worker_together(client, tmp_path, gate):
    busy = [client.queue(job("wait", gate=str(gate))) for _ in range(2)]
    ids = [client.queue(job(name=str(i), journal=str(tmp_path / "journal"))) for i in range(6)]
    gate.touch()
    assert [said(client.answer(id)) for id in ids] == [str(i) for i in range(6)]
    together = [int(line.split()[2]) for line in (tmp_path / "journal").read_text().splitlines()]
    assert max(together) > 1
    assert all(client.answer(one).kind == "result" for one in busy)


def test_a_job_beyond_its_time_is_ended_with_its_worker(limited, tight):
    id = limited.queue(job("hang", seconds=60))
    answer = limited.answer(id)
    assert (answer.kind, answer.fields["code"]) == ("error", "timeout")
    assert limited.answer(limited.queue(job())).kind == "result"


def test_a_job_that_needs_too_much_memory_is_ended_with_its_worker(limited):
    answer = limited.answer(limited.queue(job("grow", mib=500)))
    assert (answer.kind, answer.fields["code"]) == ("error", "limit")
    assert "350 MiB of memory" in answer.fields["message"]


# --- servers that end ------------------------------------------------------------------------------------------------


def test_what_a_killed_server_left_is_run_by_the_next(limited, tight, tmp_path, gate):
    journal = tmp_path / "journal"
    finished = limited.queue(job(name="finished", journal=str(journal)))
    limited.answer(finished)
    request = job("wait", gate=str(gate), name="running", journal=str(journal))
    running = limited.queue(request, Idempotency_Key="r")
    while begun(journal) != ["finished", "running"]:
        time.sleep(0.01)
    queued = limited.queue(job(name="queued", journal=str(journal)))
    tight.restart(wait=False)
    gate.touch()
    assert limited.queue(request, Idempotency_Key="r") == running
    assert [said(limited.answer(id)) for id in (finished, running, queued)] == ["finished", "running", "queued"]
    assert begun(journal) == ["finished", "running", "running", "queued"]


def test_a_server_that_is_asked_to_end_lets_jobs_end_and_keeps_the_queue(limited, tight, tmp_path, gate):
    journal = tmp_path / "journal"
    running = limited.queue(job("wait", gate=str(gate), name="running", journal=str(journal)))
    limited.until(running, "running")
    queued = limited.queue(job(name="queued", journal=str(journal)))
    tight.process.terminate()
    while "no more jobs are taken" not in tight.log.read_text():
        time.sleep(0.01)
    gate.touch()
    assert tight.process.wait(60) == 0
    assert begun(journal) == ["running"]
    tight.restart()
    assert [said(limited.answer(id)) for id in (running, queued)] == ["running", "queued"]
    assert begun(journal) == ["running", "queued"]


# --- clients that stand still, or go ---------------------------------------------------------------------------------


def test_a_client_that_goes_takes_nothing_with_it(client, stand_in, gate):
    id = client.queue(job("wait", gate=str(gate)))
    for path in ("events", "result?wait=20"):
        connection = raw(stand_in.url, f"GET /jobs/{id}/{path} HTTP/1.1", client.key)
        connection.sendall(b"\r\n")
        connection.close()
    connection = raw(stand_in.url, "POST /jobs HTTP/1.1", client.key)
    connection.sendall(f"Content-Type: {MEDIA_TYPE}\r\nContent-Length: 1000\r\n\r\nhalf".encode())
    connection.close()
    gate.touch()
    assert client.answer(id).kind == "result"


def test_a_slow_reader_keeps_nobody_waiting(client, stand_in):
    id = client.queue(job("bytes", size=50_000_000))
    client.until(id, "done")
    before = memory(stand_in)
    readers = [raw(stand_in.url, f"GET /jobs/{id}/result HTTP/1.1", client.key) for _ in range(8)]
    for reader in readers:
        reader.sendall(b"\r\n")
        assert reader.recv(100).startswith(b"HTTP/1.1 200")
    assert client.answer(client.queue(job())).kind == "result"  # while all eight stand still
    assert memory(stand_in) - before < 50e6
    for reader in readers:
        reader.close()


def memory(server: Server) -> int:
    with open(f"/proc/{server.process.pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_reader_that_stands_still_is_dropped(limited, tight, key):
    id = limited.queue(job("bytes", size=30_000_000))
    limited.until(id, "done")
    with raw(tight.url, f"GET /jobs/{id}/result HTTP/1.1", key) as reader:
        reader.sendall(b"\r\n")
        time.sleep(2)
        assert sum(map(len, iter(lambda: reader.recv(2**20), b""))) < 30_000_000


def test_a_slow_sender_is_given_up(tight, key):
    with raw(tight.url, "POST /jobs HTTP/1.1", key) as sender:
        sender.sendall(f"Content-Type: {MEDIA_TYPE}\r\nContent-Length: 1000\r\n\r\n".encode())
        start = time.monotonic()
        sender.sendall(b"nnzoo")
        assert sender.recv(1000).startswith(b"HTTP/1.1 408")
        assert time.monotonic() - start > 0.5


def test_headers_that_never_end_are_given_up(tight):
    with connected(tight.url) as sender:
        sender.sendall(b"GET /version HTTP/1.1\r\nX: ")
        with pytest.raises(ConnectionError):
            for _ in range(100):
                sender.sendall(b"x")
                time.sleep(0.1)


# --- too much --------------------------------------------------------------------------------------------------------


def test_a_request_that_is_too_large_is_refused_before_it_is_read(limited):
    response = limited.submit(bytes(5_000_000))
    assert (response.status_code, response.json()["error"]["code"]) == (413, "limit")


def test_a_request_says_how_long_it_is(limited):
    response = limited.submit(bytes(1000) for _ in range(5))
    assert (response.status_code, response.json()["error"]["code"]) == (411, "protocol")


def test_one_key_may_not_fill_the_queue(limited, gate):
    ids = [limited.queue(job("wait", gate=str(gate))) for _ in range(3)]
    response = limited.submit(job())
    assert (response.status_code, response.json()["error"]["code"]) == (429, "limit")
    assert int(response.headers["Retry-After"]) >= 1
    gate.touch()
    assert all(limited.answer(id).kind == "result" for id in ids)
    assert limited.answer(limited.queue(job())).kind == "result"


# --- keys ------------------------------------------------------------------------------------------------------------


def test_only_keys_of_the_file_are_taken_and_those_at_once(tight, keys, limited):
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"ndif-api-key": ""}):
        response = httpx2.post(f"{tight.url}/jobs", content=job(), headers={"Content-Type": MEDIA_TYPE, **headers})
        assert (response.status_code, response.json()["error"]["code"]) == (401, "key")
    bob = new_key(keys, "bob")
    with Client(tight.url, bob) as client:
        assert client.answer(client.queue(job())).kind == "result"
        keys.write_text("".join(line for line in keys.open() if not line.startswith("bob")))
        assert client.submit(job()).status_code == 401


def test_no_key_and_nothing_of_a_request_is_in_the_log(tight, key, limited):
    limited.answer(limited.queue(job(name="a secret of mine")))
    log = tight.log.read_text()
    assert key not in log
    assert "a secret of mine" not in log


def test_beyond_this_machine_a_server_needs_keys(capsys):
    assert main(["serve", "nnzoo/tiny-gpt2", "--host", "0.0.0.0"]) == 2
    assert "needs keys" in capsys.readouterr().err


def test_a_folder_of_jobs_has_one_server(tight, capsys):
    assert main(["serve", "nnzoo/tiny-gpt2", "--port", "0", "--data", str(tight.data)]) == 2
    assert "another server keeps its jobs" in capsys.readouterr().err
