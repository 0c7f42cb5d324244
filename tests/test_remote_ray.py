"""A server whose workers are actors on a Ray cluster of two nodes, on this machine. Without ray they are skipped."""

import os
import re
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
import torch

import nnzoo.remote.server
from nnzoo import LanguageModel
from nnzoo.cli import main
from nnzoo.remote.limits import Limits
from nnzoo.remote.protocol import pack
from nnzoo.remote.server.settings import Settings
from ray_cluster import RayCluster
from remote_http import Client, begun
from remote_jobs import MODEL, job, said
from remote_server import Server


@pytest.fixture(scope="module")
def cluster():
    pytest.importorskip("ray")
    with RayCluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def server(cluster):
    options = {"seconds": 120, "worker_memory": "700M", "grace": 2}
    with Server(
        workers=2, ray=cluster.address, environment=cluster.environment, runner="ray_cluster:answers", **options
    ) as running:
        yield running


@pytest.fixture
def client(server):
    until(lambda: staff(server)["ready"] == 2)
    with Client(server.url) as client:
        yield client


def staff(server: Server) -> dict[str, int]:
    return httpx2.get(f"{server.url}/health").json()["models"][MODEL]


def answers(server: Server) -> bool:
    try:
        return httpx2.get(f"{server.url}/version").status_code == 200
    except httpx2.ConnectError:
        return False


def until(look) -> None:
    for _ in range(4000):
        if look():
            return
        time.sleep(0.05)
    raise AssertionError("it never comes to that")


# --- a node that is killed under load --------------------------------------------------------------------------------


def traced(model: LanguageModel, scale: float) -> tuple[bytes, torch.Tensor]:
    """A request that no other is like and that takes a while, and the value that it is to give."""
    with model.trace(torch.arange(128).repeat(16, 1)) as tracer:
        model.transformer.h[1].output[0][:] *= scale
        logits = model.output.mean((0, 1)).save()
        graph = tracer.graph
    return pack("request", {"model": MODEL, "graph": graph.to_json()}, graph.tensors), logits


def fetched(server: Server, key: str, jobs: list[tuple[bytes, torch.Tensor]]) -> None:
    """Send some jobs at once; each gets its own value, and the same one again."""
    with Client(server.url, key) as client:
        ids = [client.queue(request) for request, _ in jobs]
        assert len(set(ids)) == len(jobs)
        for id, (_, logits) in zip(ids, jobs, strict=True):
            first, again = client.answer(id), client.answer(id)
            assert first.kind == "result", first.fields
            torch.testing.assert_close(*first.tensors.values(), logits)
            assert torch.equal(*first.tensors.values(), *again.tensors.values())


def ended(server: Server) -> dict[str, float]:
    """How many jobs ended, by how, as the server counts them."""
    found = re.findall(r'^nnzoo_jobs_total\{.*status="(\w+)"\} (\S+)$', httpx2.get(f"{server.url}/metrics").text, re.M)
    return {status: float(number) for status, number in found}


def test_no_job_is_lost_with_a_node_and_each_is_answered_once(cluster, server):
    model = LanguageModel(MODEL)
    jobs = [traced(model, 1 + 0.02 * number) for number in range(90)]
    until(lambda: staff(server)["ready"] == 2)
    with ThreadPoolExecutor(6) as clients:
        running = [clients.submit(fetched, server, f"key {i}", jobs[15 * i : 15 * i + 15]) for i in range(6)]
        until(lambda: ended(server).get("done", 0) >= 10)
        cluster.kill_node()
        for one in running:
            one.result()
    assert ended(server) == {"done": 90.0}
    log = server.log.read_text()
    assert "lost their worker" in log
    assert len(set(re.findall(r"job (\S+) of \S+: done", log))) == len(re.findall(": done", log)) == 90
    until(lambda: staff(server) == {"ready": 1, "busy": 0, "starting": 1, "queued": 0})  # there is room for one alone
    cluster.add_node()
    until(lambda: staff(server)["ready"] == 2)


# --- the same as with processes of this machine ----------------------------------------------------------------------


def state(process: int) -> list[str]:
    """Of a process, its state, its parent, and more."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


def runs(process: int) -> bool:
    return Path(f"/proc/{process}").exists() and state(process)[0] != "Z"  # nodes leave zombies


def processes(journal: Path) -> list[int]:
    return [int(line.split()[1]) for line in journal.read_text().splitlines()]


def test_workers_are_spread_over_the_nodes(client, tmp_path):
    journal = tmp_path / "journal"
    ids = [client.queue(job("sleep", seconds=0.5, name=str(i), journal=str(journal))) for i in range(2)]
    until(lambda: len(begun(journal)) == 2)
    raylets = {
        Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1] for process in processes(journal)
    }
    assert len(raylets) == 2
    assert [said(client.answer(id)) for id in ids] == ["0", "1"]


def test_progress_comes_from_a_cluster(client):
    kinds = [kind for _, kind, _ in client.events(client.queue(job("sleep", seconds=0.4)))]
    assert kinds.count("progress") > 1
    assert kinds[-1] == "end"


def test_an_answer_may_be_larger_than_the_object_stores(client):
    size = 110_000_000
    assert client.answer(client.queue(job("bytes", size=size))).tensors["t"].shape == (size,)


def test_a_request_may_be_larger_than_a_piece(client):
    assert said(client.answer(client.queue(job(name="large", padding=9_000_000 * "x")))) == "large"


def test_a_job_that_is_cancelled_leaves_its_worker_or_is_killed_with_it(client, tmp_path):
    for do, stays in [("sleep", True), ("hang", False)]:
        journal = tmp_path / do
        id = client.queue(job(do, seconds=1.8 if stays else 60, name=do, journal=str(journal)))
        until(lambda journal=journal: begun_by(journal))
        assert client.delete(f"/jobs/{id}").status_code in (200, 204)
        assert client.answer(id).fields["code"] == "cancelled"
        if not stays:
            until(lambda journal=journal: not runs(begun_by(journal)))


def begun_by(journal: Path) -> int:
    return processes(journal)[-1] if journal.exists() and journal.read_text().endswith("\n") else 0


def test_a_job_beyond_its_time_is_ended_with_its_worker(cluster, client, server):
    cluster.add_node()
    with Server(
        ray=cluster.address, environment=cluster.environment, runner="ray_cluster:answers", seconds=1
    ) as strict, Client(strict.url) as hurried:  # fmt: skip
        assert hurried.answer(hurried.queue(job("hang", seconds=600))).fields["code"] == "timeout"


def test_a_job_that_needs_too_much_memory_is_ended_with_its_worker(client):
    answer = client.answer(client.queue(job("grow", mib=900)))
    assert (answer.kind, answer.fields["code"]) == ("error", "limit")
    assert "700 MiB of memory" in answer.fields["message"]


def test_a_job_whose_worker_is_killed_runs_once_more(client, tmp_path):
    journal = tmp_path / "journal"
    id = client.queue(job("sleep", seconds=0.5, name="again", journal=str(journal)))
    until(lambda: begun_by(journal))
    os.kill(begun_by(journal), signal.SIGKILL)
    assert client.answer(id).kind == "result"
    assert begun(journal) == ["again", "again"]


def test_a_killed_server_leaves_no_worker_and_the_next_runs_what_waited(client, server, tmp_path):
    journal = tmp_path / "journal"
    id = client.queue(job("sleep", seconds=1, name="again", journal=str(journal)))
    until(lambda: begun_by(journal))
    left = begun_by(journal)
    server.restart(wait=False)
    until(lambda: answers(server))
    assert client.answer(id).kind == "result"
    assert begun(journal) == ["again", "again"]
    until(lambda: not runs(left))


def test_a_server_whose_cluster_loses_its_head_says_so_and_the_next_goes_on_with_the_queue(tmp_path, gate):
    pytest.importorskip("ray")
    journal, how = tmp_path / "journal", {"runner": "ray_cluster:answers", "data": tmp_path / "data"}
    with RayCluster() as first, Server(ray=first.address, environment=first.environment, **how) as server:
        with Client(server.url) as client:
            ids = [client.queue(job("wait", gate=str(gate), name=str(i), journal=str(journal))) for i in range(3)]
            until(lambda: begun(journal))
        first.behead()
        assert server.process.wait(120) == 75
        assert "the head of the Ray cluster at" in server.log.read_text()
    gate.touch()
    with RayCluster() as second, Server(ray=second.address, environment=second.environment, **how) as server:
        with Client(server.url) as client:
            assert [said(client.answer(id)) for id in ids] == ["0", "1", "2"]


# --- what is asked of a cluster --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "gpus"), [({}, 0), ({"device": "cuda"}, 1), ({"device": "cuda", "gpus": 0.5}, 0.5)]
)
def test_a_worker_takes_processors_and_where_its_device_is_one_a_gpu(options, gpus):
    pytest.importorskip("ray")
    from nnzoo.remote.server.ray_workers import RayWorkers

    workers = RayWorkers({MODEL: MODEL}, 1, limits=Limits(), memory=2**30, cpus=3, **options)
    assert workers.needs == {"num_cpus": 3, "num_gpus": gpus, "memory": 2**30}
    assert workers.settings(MODEL)["threads"] == 3


def test_a_worker_that_needs_a_gpu_waits_for_a_node_that_has_one(cluster, server):
    cluster.add_node()
    with Server(ray=cluster.address, environment=cluster.environment, device="cuda", wait=False) as waiting:
        until(lambda: answers(waiting))
        time.sleep(4)
        assert staff(waiting)["starting"] == 1
        assert "a worker of" not in waiting.log.read_text()
        cluster.add_node(gpus=1)  # without a real one CUDA fails there
        until(lambda: re.search("a worker of .*(CUDA|NVIDIA|is ready)", waiting.log.read_text()))


def test_where_no_cluster_is_the_server_says_so(capsys, tmp_path):
    pytest.importorskip("ray")
    assert main(["serve", MODEL, "--port", "0", "--data", str(tmp_path), "--ray", "127.0.0.1:9"]) == 2
    assert "cannot join a Ray cluster at 127.0.0.1:9" in capsys.readouterr().err


def test_without_ray_the_server_says_what_to_install(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "nnzoo.remote.server.ray_workers", raising=False)
    monkeypatch.delattr(nnzoo.remote.server, "ray_workers", raising=False)
    assert main(["serve", MODEL, "--port", "0", "--data", str(tmp_path), "--ray", "auto"]) == 2
    assert "pip install 'nnzoo[ray]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [({"worker_cpus": 2}, "--ray"), ({"ray": "auto", "worker_gpus": 1.0}, "--device cuda")],
)
def test_options_of_a_cluster_that_would_do_nothing_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Settings(models=(MODEL,), **options)
