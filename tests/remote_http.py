"""A client of the server's HTTP interface as it is written down, for tests of the server alone."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2

from nnzoo.remote.protocol import MEDIA_TYPE, Message, unpack

ANSWER = ("result", "error")


class Client(httpx2.Client):
    """Sends and fetches jobs with one key."""

    def __init__(self, url: str, key: str = "key") -> None:
        self.key = key
        super().__init__(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30)

    def submit(self, request: bytes, wait: float | None = None, **headers: str) -> httpx2.Response:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        params = {} if wait is None else {"wait": wait}
        return self.post("/jobs", content=request, params=params, headers={"Content-Type": MEDIA_TYPE, **names})

    def queue(self, request: bytes, **headers: str) -> str:
        """Send a job that is taken; gives its id."""
        response = self.submit(request, **headers)
        assert response.status_code in (200, 202), response.text
        return response.json()["id"]

    def status(self, id: str) -> str:
        return self.get(f"/jobs/{id}").json()["status"]

    def until(self, id: str, status: str) -> None:
        """Wait until a job has a status."""
        for _ in range(1000):
            if self.status(id) == status:
                return
            time.sleep(0.02)
        raise AssertionError(f"the job is {self.status(id)}, and never {status}")

    def answer(self, id: str) -> Message:
        for _ in range(12):  # minutes, on a machine that does other things too
            response = self.get(f"/jobs/{id}/result", params={"wait": 25})
            if response.status_code != 202:
                break
        assert response.status_code == 200, response.text
        return unpack(response.content, kinds=ANSWER)

    def events(self, id: str, last_seen: str = "", most: int = 1000) -> Iterator[tuple[str, str, Any]]:
        """A job's events: id, kind, data."""
        headers = {"Last-Event-ID": last_seen} if last_seen else {}
        with self.stream("GET", f"/jobs/{id}/events", headers=headers) as response:
            fields: dict[str, str] = {}
            for line in response.iter_lines():
                name, _, value = line.partition(": ")
                if name in ("id", "event", "data"):
                    fields[name] = value
                elif not line and fields:
                    yield fields["id"], fields["event"], json.loads(fields["data"])
                    fields, most = {}, most - 1
                    if not most:
                        return


def connected(url: str) -> socket.socket:
    """A connection to a server, on which nothing was said."""
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def raw(url: str, request: str, key: str) -> socket.socket:
    """A connection on which a request was begun, whose headers have not ended: `GET /models HTTP/1.1`."""
    connection = connected(url)
    connection.sendall(f"{request}\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n".encode())
    return connection


def begun(journal: Path) -> list[str]:
    """The names of the jobs that were begun, in order, as the stand-in's jobs note it."""
    return [line.split()[0] for line in journal.read_text().splitlines()] if journal.exists() else []
