"""The server's parts, each alone: the durable queue, turns between keys, shares of keys, files of keys, events."""

import stat
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnzoo.remote.server.events import MOST_LOG_LINES, Events
from nnzoo.remote.server.job import Job
from nnzoo.remote.server.keys import AnyKey, KeyFile, new_key
from nnzoo.remote.server.quotas import Quotas
from nnzoo.remote.server.refusals import Refused
from nnzoo.remote.server.settings import Settings
from nnzoo.remote.server.store import DONE, QUEUED, RUNNING, Row, Store
from nnzoo.remote.server.waiting import Waiting


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(tmp_path, clock):
    store = Store(tmp_path / "jobs", clock)
    yield store
    store.close()


def added(store: Store, data: bytes = b"request", **changes) -> Row:
    file = store.upload()
    file.write_bytes(data)
    fields = {"owner": "me", "idempotency": None, "digest": "d", "model": "m", "size": len(data)}
    return store.add(file, **{**fields, **changes})


def answered(store: Store, row: Row, data: bytes = b"answer") -> bool:
    file = store.upload()
    file.write_bytes(data)
    return store.finished(row.id, DONE, file)


# --- the durable queue -----------------------------------------------------------------------------------------------


def test_jobs_without_an_answer_are_queued_again_in_their_order(tmp_path, store):
    rows = [added(store) for _ in range(4)]
    store.started(rows[1].id)
    answered(store, rows[2])
    store.close()
    again = Store(tmp_path / "jobs")
    waiting = again.recover()
    assert [(row.id, row.status, row.attempts) for row in waiting] == [
        (rows[0].id, QUEUED, 0),
        (rows[1].id, QUEUED, 1),
        (rows[3].id, QUEUED, 0),
    ]
    assert again.request(rows[0].id).read_bytes() == b"request"
    assert again.answer(rows[2].id).read_bytes() == b"answer"
    again.close()
    store.__init__(tmp_path / "jobs")


def test_a_job_has_one_answer(store):
    row = added(store)
    assert answered(store, row, b"first")
    assert not answered(store, row, b"second")
    assert store.answer(row.id).read_bytes() == b"first"
    assert not store.request(row.id).exists()


def test_files_that_no_job_has_are_removed(store, tmp_path):
    row = added(store)
    for folder in ("uploads", "requests", "answers"):
        (tmp_path / "jobs" / folder / "stray").touch()
    store.recover()
    left = {file.name for file in (tmp_path / "jobs").glob("*/*")}
    assert left == {row.id}


def test_an_answer_is_kept_for_its_time(store, clock):
    old, new = added(store), added(store)
    answered(store, old)
    clock.now += 50
    answered(store, new)
    clock.now += 20
    store.sweep(seconds=60.0, most_bytes=1000)
    assert not store.answer(old.id).exists()
    assert store.answer(new.id).exists()
    assert store.find(old.id).answer_size is None
    assert store.find(old.id).status == DONE


def test_the_oldest_answers_go_when_there_are_too_many_bytes(store, clock):
    rows = [added(store) for _ in range(250)]
    for row in rows:
        clock.now += 0.1
        answered(store, row, bytes(10))
    store.sweep(seconds=1000.0, most_bytes=25)
    assert [row.id for row in rows if store.answer(row.id).exists()] == [row.id for row in rows[-2:]]
    assert store.kept_bytes == 20


def test_who_keeps_most_loses_first_when_there_are_too_many_bytes(store, clock):
    modest, greedy = added(store, owner="modest"), [added(store, owner="greedy") for _ in range(3)]
    for row in (modest, *greedy):
        clock.now += 1
        answered(store, row, bytes(10))
    store.sweep(seconds=1000.0, most_bytes=25)
    assert [row for row in (modest, *greedy) if store.answer(row.id).exists()] == [modest, greedy[-1]]


def test_jobs_are_for_nobody_elses_eyes(store, tmp_path):
    folders = [tmp_path / "jobs", *(tmp_path / "jobs" / name for name in ("uploads", "requests", "answers"))]
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in folders] == [0o700] * 4


def test_a_folder_that_others_may_enter_keeps_no_jobs(tmp_path):
    for part in ("", "answers"):
        (tmp_path / "open" / part).mkdir(mode=0o700, parents=True)
        (tmp_path / "open" / part).chmod(0o777)
        with pytest.raises(PermissionError, match=f"chmod 700 {tmp_path / 'open' / part}"):
            Store(tmp_path / "open")
        (tmp_path / "open" / part).chmod(0o700)
    Store(tmp_path / "open").close()


# --- turns -----------------------------------------------------------------------------------------------------------


def waiting(*owners: str) -> tuple[Waiting, list[Job]]:
    row = Row(0, "", "", None, "", "m", QUEUED, 10, 0.0, None, None, 0, None)
    jobs = [Job(replace(row, id=f"{owner}{i}", owner=owner)) for i, owner in enumerate(owners)]
    queue = Waiting()
    for job in jobs:
        queue.add(job)
    return queue, jobs


def test_who_sent_much_does_not_keep_others_waiting():
    queue, _ = waiting(*"aaaab", "c")
    assert [queue.take(1, 100)[0].owner for _ in range(6)] == list("abcaaa")


@given(st.lists(st.sampled_from("abc"), max_size=12))
def test_how_many_are_ahead_is_how_many_run_before(owners):
    queue, jobs = waiting(*owners)
    said = {job.id: queue.ahead(job) for job in jobs}
    order = [queue.take(1, 100)[0].id for _ in jobs]
    assert {id: order.index(id) for id in order} == said
    assert not len(queue)


def test_jobs_are_taken_together_as_far_as_they_may_be():
    queue, jobs = waiting(*"abcd")
    assert [job.owner for job in queue.take(3, 25)] == ["a", "b"]
    queue, jobs = waiting(*"abcd")
    jobs[1].alone = True
    assert [[job.owner for job in queue.take(4, 100)] for _ in range(3)] == [["a"], ["b"], ["c", "d"]]


# --- shares ----------------------------------------------------------------------------------------------------------


def test_a_key_has_so_many_jobs_a_minute(clock):
    quotas = Quotas(jobs=10, size=10, per_minute=2, requests=10, clock=clock)
    for _ in range(2):
        quotas.check("me")
        quotas.sent("me")
        clock.now += 10
    with pytest.raises(Refused, match="2 jobs a minute; the next in 40 seconds"):
        quotas.check("me")
    quotas.check("you")
    clock.now += 41
    quotas.check("me")


def test_a_key_has_so_many_bytes():
    quotas = Quotas(jobs=10, size=100, per_minute=10, requests=10)
    quotas.hold("me", 90)
    with pytest.raises(Refused, match="100 bytes together"):
        quotas.hold("me", 20)
    quotas.hold("you", 20)
    quotas.hold("me", -90)
    quotas.hold("me", 100)


# --- keys ------------------------------------------------------------------------------------------------------------


def test_a_file_holds_names_and_hashes_and_no_key(tmp_path):
    file = tmp_path / "keys.txt"
    alice, bob = (new_key(file, name) for name in ("alice", "bob"))
    text = file.read_text()
    assert alice not in text
    assert bob not in text
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    keys = KeyFile(file)
    assert [keys.owner(key).name for key in (alice, bob)] == ["alice", "bob"]
    assert [keys.owner(key) for key in (None, "", "alice", alice[:-1])] == [None] * 4


def test_a_name_is_given_once(tmp_path):
    new_key(tmp_path / "keys", "alice")
    with pytest.raises(ValueError, match="by the name of alice"):
        new_key(tmp_path / "keys", "alice")
    with pytest.raises(ValueError, match="letters, digits"):
        new_key(tmp_path / "keys", "two words")


def test_while_a_file_is_unreadable_its_last_keys_hold(tmp_path):
    file = tmp_path / "keys"
    key = new_key(file, "alice")
    keys, text = KeyFile(file), file.read_text()
    file.write_text("half a li")
    assert keys.owner(key).name == "alice"
    with pytest.raises(ValueError, match="line 1"):
        KeyFile(file)
    file.write_text(text.replace("alice", "renamed"))
    assert keys.owner(key).name == "renamed"


def test_a_file_into_which_others_may_write_is_refused(tmp_path):
    file = tmp_path / "keys"
    key = new_key(file, "alice")
    keys = KeyFile(file)
    file.chmod(0o666)
    with pytest.raises(ValueError, match=f"chmod 600 {file}"):
        KeyFile(file)
    assert keys.owner(key).name == "alice"  # a server that runs goes on with those it has read


def test_any_key_is_still_its_own():
    assert AnyKey().owner("a").digest != AnyKey().owner("b").digest
    assert AnyKey().owner(None) is not None


def test_beyond_loopback_settings_ask_for_keys(tmp_path):
    for host in ("0.0.0.0", "192.168.0.1", "::", "example.com"):
        with pytest.raises(ValueError, match="needs keys"):
            Settings(models=("m",), host=host)
        Settings(models=("m",), host=host, keys=tmp_path)


# --- events ----------------------------------------------------------------------------------------------------------


def test_of_lines_the_last_are_kept_and_of_status_the_latest():
    events = Events()
    for number in range(MOST_LOG_LINES + 5):
        events.add("log", {"line": str(number)})
        events.add("status", {"status": RUNNING})
    kept = [event.data["line"] for event in events.since(0) if event.kind == "log"]
    assert kept == [str(number) for number in range(5, MOST_LOG_LINES + 5)]
    assert sum(event.kind == "status" for event in events.since(0)) == 1
