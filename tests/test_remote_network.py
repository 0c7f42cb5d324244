"""Networks as they are: connections cut and servers started again in every phase, proxies, TLS, other addresses."""

import http.server
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

from nnzoo import CONFIG, LanguageModel
from nnzoo.remote import client as client_module
from nnzoo.remote.client import ATTEMPTS, ATTEMPTS_LATER, Client
from nnzoo.remote.errors import NoServer, RemoteError
from nnzoo.remote.job import Job
from remote_http import begun
from remote_jobs import MODEL, job
from remote_server import Server
from remote_stand_in import StandIn


@pytest.fixture
def quick(monkeypatch):
    """Pauses of a tenth."""
    sleep = time.sleep
    monkeypatch.setattr(client_module.time, "sleep", lambda seconds: sleep(seconds / 10))


class Wire:
    """A proxy that passes bytes on to a server, unless `cut` says, of some bytes in one direction, to hang up."""

    def __init__(self, server: str, cut: Callable[[str, bytes], bool] = lambda way, data: False) -> None:
        host, port = server.removeprefix("http://").split(":")
        self._server, self.cut = (host, int(port)), cut
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            here, _ = self._listening.accept()
            try:
                there = socket.create_connection(self._server)
            except OSError:
                here.close()
                continue
            for way, source, target in (("there", here, there), ("back", there, here)):
                threading.Thread(target=self._pass_on, args=(way, source, target), daemon=True).start()

    def _pass_on(self, way: str, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(2**14):
                if self.cut(way, data):
                    break
                target.sendall(data)
        except OSError:
            pass
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


def client_of(url: str, key: str = "network") -> Client:
    return Client(url, key)


# --- connections that are cut ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "word"),
    [
        ("there", b"POST /jobs"), ("there", b"nnzoo\0"), ("back", b"HTTP/1.1 202"), ("there", b"/result?"),
        ("back", b"HTTP/1.1 200"), ("back", b"nnzoo\0"),
    ],
    ids=["before it is sent", "in its body", "before it is told", "asking", "in the headers", "in the answer"],
)  # fmt: skip
def test_a_connection_cut_in_any_phase_costs_no_job_and_makes_none(stand_in, quick, tmp_path, way, word):
    cuts = []

    def cut(direction: str, data: bytes) -> bool:
        hit = direction == way and word in data and len(cuts) < 2
        cuts.extend([1] * hit)
        return hit

    wire, journal = Wire(stand_in.url, cut), tmp_path / "journal"
    sent = Job.send(client_of(wire.url), job(name="once", journal=str(journal)), wait=False, receive=lambda m: m.kind)
    assert sent.result(30) == "result"
    assert begun(journal) == ["once"] and cuts


@pytest.fixture(scope="module")
def restarted() -> Iterator[Server]:
    with Server(runner="remote_jobs:answers") as server:
        yield server


@pytest.mark.parametrize("phase", ["before it is sent", "while its events come", "when it is over"])
def test_a_server_started_again_in_any_phase_costs_no_job(restarted, tmp_path, gate, phase):
    client, journal = client_of(restarted.url), tmp_path / "journal"
    client.version()
    again = threading.Thread(target=restarted.restart, kwargs={"wait": False})
    if phase == "before it is sent":
        again.start()
    request = job("wait", gate=str(gate), journal=str(journal))
    sent = Job.send(client, request, wait=False, receive=lambda message: message.kind)
    events = sent.events()
    if phase == "while its events come":
        while next(events).name != "progress":
            pass
        again.start()
    if phase == "when it is over":
        gate.touch()
        sent.result(60)
        again.start()
    again.join()
    gate.touch()
    assert [event.name for event in events][-1] == "end"
    assert pick_up_from(client, sent).result(60)
    assert len(begun(journal)) == (2 if phase == "while its events come" else 1)


def pick_up_from(client: Client, sent: Job) -> Job:
    return Job(client, sent.id, receive=lambda message: message.kind)


def test_who_has_answered_is_waited_for_longer(pauses):
    with StandIn(**{MODEL: LanguageModel(MODEL)}).configured() as server:
        client = server.client
        server.faults = [httpx2.ConnectError("refused")] * 99
        with pytest.raises(NoServer):
            client.version()
        assert len(pauses) == ATTEMPTS - 1 and sum(pauses) > 3
        server.faults.clear()
        client.version()
        pauses.clear()
        server.faults = [httpx2.ConnectError("refused")] * (ATTEMPTS_LATER - 1)
        assert client.version()
        assert 40 < sum(pauses) < 200


# --- proxies ---------------------------------------------------------------------------------------------------------


def test_a_proxy_that_keeps_events_costs_no_result(stand_in, monkeypatch, gate):
    """Events do not come before they are all there, which a reader takes for a silence."""
    waiting = Job.send(client_of(stand_in.url), job("wait", gate=str(gate)), wait=False, receive=lambda m: m.kind)
    monkeypatch.setattr(Job, "events", lambda job: (_ for _ in ()).throw(NoServer("nothing comes")))
    monkeypatch.setattr("nnzoo.remote.progress.is_watched", lambda: True)
    threading.Timer(0.5, gate.touch).start()
    assert waiting.result() == "result"


def test_an_answer_of_somebody_else_is_none(pauses):
    with StandIn(**{MODEL: LanguageModel(MODEL)}).configured() as server:
        page = httpx2.Response(200, text="<html>Log in to this network", headers={"Content-Type": "text/html"})
        moved = httpx2.Response(301, headers={"Location": "https://elsewhere/version"})
        server.faults = [page, moved]
        with pytest.raises(RemoteError, match=r"text/html.*Log in to this network"):
            server.client.version()
        with pytest.raises(RemoteError, match=r"is now at https://elsewhere.*CONFIG\.API\.HOST"):
            server.client.version()
        assert not pauses and len(server.asked) == 2, "neither is asked again, and nobody else is"


def test_a_proxy_of_the_environment_is_for_other_machines(server, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert client_of(server.url).version()["protocol"] == 1
    monkeypatch.setattr(client_module, "ATTEMPTS", 1)
    with pytest.raises(NoServer):
        client_of("http://nnzoo.invalid").version()


# --- addresses -------------------------------------------------------------------------------------------------------


def result_at(address: str) -> tuple[torch.Tensor, torch.Tensor]:
    model = LanguageModel(MODEL)
    with model.trace("The keys", remote=address):
        logits = model.output[0, -1].save()
    with model.trace("The keys"):
        expected = model.output[0, -1].save()
    return logits, expected


def test_a_server_listens_at_a_socket_in_the_file_system(tmp_path):
    path = tmp_path / "nnzoo.sock"
    socket.socket(socket.AF_UNIX).bind(str(path))  # left by a server that was killed
    with Server(host=f"unix:{path}", wait=False) as server:
        assert client_of(server.url).version()["protocol"] == 1
        assert path.stat().st_mode & 0o777 == 0o600
        from nnzoo.remote.server.serving import listen

        with pytest.raises(OSError, match="another server listens there"):
            listen(f"unix:{path}", 0)
    assert server.url == f"unix:{path}"


def test_where_a_server_listens_connections_wait_for_it():
    from nnzoo.remote.server.serving import listen

    with listen("127.0.0.1", 0) as listening:
        socket.create_connection(listening.getsockname(), timeout=5).close()


@pytest.mark.skipif(not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists(), reason="no IPv6 here")
def test_a_server_listens_at_an_address_of_ipv6():
    with Server(host="::1", wait=False) as server:
        assert server.url.startswith("http://[::1]:")
        assert client_of(server.url).version()["protocol"] == 1


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    """One for localhost that nobody vouches for, with its key."""
    file = tmp_path_factory.mktemp("tls") / "certificate.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names, "-keyout", "-"]
    try:
        made = subprocess.run([*command, "-out", "/dev/stdout"], capture_output=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("no openssl here")
    file.write_bytes(made.stdout)
    return file


@contextmanager
def tls(server: str, certificate: Path) -> Iterator[str]:
    """A proxy with TLS before a server."""

    class Proxy(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {**self.headers, "Host": "localhost"}
            answer = httpx2.request(self.command, server + self.path, content=body, headers=headers)
            self.send_response(answer.status_code)
            for name in ("content-type", "location"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_POST = do_GET

        def log_message(self, *args: Any) -> None: ...

    proxy = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    proxy.socket = context.wrap_socket(proxy.socket, server_side=True)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    yield f"https://localhost:{proxy.server_port}"
    proxy.shutdown()


def test_tls_is_checked_by_authorities_of_ones_own(server, certificate, monkeypatch, pauses):
    monkeypatch.setattr(CONFIG.API, "connections", {})
    with tls(server.url, certificate) as url:
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        with pytest.raises(NoServer, match=r"nobody here vouches for.*SSL_CERT_FILE"):
            client_of(url).version()
        assert not pauses, "it would be the same again"
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        torch.testing.assert_close(*result_at(url))
