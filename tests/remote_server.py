"""A server in a process of its own, which tests start, kill and start again: `Server(models=["nnzoo/tiny-gpt2"])`."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest

from layout import ROOT

STARTING = 60  # seconds, on a machine that does other things too


class Server:
    """`nnzoo serve` on a free port of this machine; `options` are those of the command, with underscores.

    `runner`, "module:function", runs jobs in the place of nnzoo.remote.running:answers. `data` is a folder that
    the server of an earlier test left; `wait=False` does not wait for its workers.
    """

    def __init__(
        self,
        models: Sequence[str] = ("nnzoo/tiny-gpt2",),
        keys: Path | None = None,
        *,
        runner: str | None = None,
        data: Path | None = None,
        wait: bool = True,
        environment: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="nnzoo-server-"))
        self.data = data or self.folder / "data"
        self.log = self.folder / "log.txt"
        self._runner, self._environment = runner, environment or {}
        self._options = {"data": self.data, **({"keys": keys} if keys else {}), **options}
        self._models = list(models)
        self._port = 0
        self.url: str
        self.process: subprocess.Popen[bytes]
        self._start(wait)

    def restart(self, *, wait: bool = True) -> None:
        """Start again, at the same address and with the same folder; whoever was there is killed."""
        self.kill()
        self._start(wait)

    def kill(self) -> None:
        """End it as `kill -9` does: without a chance to tidy up."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Ask it to end, and give its exit status."""
        self.process.terminate()
        return self.process.wait(30)

    def workers(self) -> list[int]:
        """The processes that run jobs."""
        children = f"/proc/{self.process.pid}/task/{self.process.pid}/children"
        return [int(child) for child in Path(children).read_text().split()]

    def _start(self, wait: bool) -> None:
        options = [
            part for name, value in self._options.items() for part in (f"--{name.replace('_', '-')}", str(value))
        ]
        program = ["-m", "nnzoo"] if self._runner is None else [__file__, self._runner]
        command = [sys.executable, *program, "serve", *self._models, "--port", str(self._port), *options]
        paths = [str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "OMP_NUM_THREADS": "1"}
        environment |= self._environment
        said = len(self.log.read_text()) if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)
        self.url = self._until(lambda: re.search(r" at (http://\S+|unix:\S+)", self.log.read_text()[said:]))[1]
        if self.url.startswith("http"):
            self._port = int(self.url.rpartition(":")[2])
        if wait:
            self._until(self._is_well)

    def _is_well(self) -> bool:
        if self.url.startswith("http"):
            return httpx2.get(f"{self.url}/health").status_code == 200
        with httpx2.Client(transport=httpx2.HTTPTransport(uds=self.url.removeprefix("unix:"))) as client:
            return client.get("http://localhost/health").status_code == 200

    def _until(self, look: Any) -> Any:
        for _ in range(STARTING * 50):
            if found := look():
                return found
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise RuntimeError(f"the server does not start:\n{self.log.read_text()}")

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A server of nnzoo/tiny-gpt2 with two workers, for all tests that leave it as it was."""
    with Server(workers=2) as running:
        yield running


@pytest.fixture(scope="session")
def stand_in() -> Iterator[Server]:
    """The same with jobs of tests/remote_jobs.py, which sleep, grow and crash when they are told to."""
    with Server(workers=2, runner="remote_jobs:answers") as running:
        yield running


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file for which jobs of the stand-in wait; what a failed test leaves waiting is let go."""
    yield tmp_path / "gate"
    (tmp_path / "gate").touch()


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that a client here would make between attempts, none of which is made."""
    from nnzoo.remote import client

    made: list[float] = []
    monkeypatch.setattr(client.time, "sleep", made.append)
    return made


if __name__ == "__main__":  # remote_server.py RUNNER serve MODEL...
    from nnzoo import cli
    from nnzoo.remote.server import keeping

    keeping.RUNNER = sys.argv[1]
    sys.exit(cli.main(sys.argv[2:]))
