"""A server from its start to its end: the socket, the queue, the workers and the HTTP server around them."""

import asyncio
import logging
import os
import signal
import socket
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from nnzoo.remote.server.app import Service
from nnzoo.remote.server.dispatcher import Dispatcher
from nnzoo.remote.server.keys import AnyKey, KeyFile
from nnzoo.remote.server.local import LocalWorkers
from nnzoo.remote.server.metrics import Metrics
from nnzoo.remote.server.models import Served, look_up
from nnzoo.remote.server.patience import patient
from nnzoo.remote.server.settings import Settings
from nnzoo.remote.server.store import Store
from nnzoo.remote.server.workers import Workers

log = logging.getLogger(__name__)
MOST_CONNECTIONS = 800  # each has a file descriptor, of which a process often has 1024
BACKLOG = 2048  # connections that wait to be taken
KEEP_ALIVE = 60  # seconds, for a connection on which nothing is asked


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises ValueError or OSError for settings under which it cannot."""
    keys = KeyFile(settings.keys) if settings.keys else AnyKey()
    served = {name: look_up(path, name) for name, path in settings.loaded.items()}
    os.umask(0o077)  # jobs are nobody else's to read
    store = Store(settings.data)
    listening = listen(settings.host, settings.port)
    workers = workers_of(settings)
    asyncio.run(_serve(settings, keys, served, store, listening, workers))


def workers_of(settings: Settings) -> Workers:
    """The workers that settings ask for, here or on a cluster. Raises ConnectionError where there is no cluster."""
    given: dict[str, Any] = {
        "limits": settings.limits,
        "memory": settings.worker_memory,
        "device": settings.device,
    }
    if settings.ray is None:
        return LocalWorkers(settings.loaded, settings.workers, **given)
    try:
        from nnzoo.remote.server import ray_workers
    except ModuleNotFoundError as error:
        raise ImportError("a cluster (--ray) needs ray, which is not installed: pip install 'nnzoo[ray]'") from error
    ray_workers.connect(settings.ray)
    given |= {"cpus": settings.worker_cpus or 1, "gpus": settings.worker_gpus or 1.0}
    return ray_workers.RayWorkers(settings.loaded, settings.workers, **given)


def listen(host: str, port: int) -> socket.socket:
    """A socket at which connections may come, and wait until the server takes them. Raises OSError where it cannot."""
    try:
        if host.startswith("unix:"):
            return _listen_at(Path(host.removeprefix("unix:")))
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # TCP by name: asyncio sends small answers at once (TCP_NODELAY) only where the socket says that it is one
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        raise OSError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from error
    return listening


def _listen_at(path: Path) -> socket.socket:
    """A socket in the file system, for its owner alone; what a server left that is gone is replaced."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    if path.is_socket():
        if listening.connect_ex(str(path)) == 0:
            raise OSError("another server listens there")
        path.unlink()
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(path))
    path.chmod(0o600)
    listening.listen(BACKLOG)
    return listening


def _address(listening: socket.socket) -> str:
    if listening.family == socket.AF_UNIX:
        return f"unix:{listening.getsockname()}"
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _serve(
    settings: Settings,
    keys: AnyKey | KeyFile,
    served: dict[str, Served],
    store: Store,
    listening: socket.socket,
    workers: Workers,
) -> None:
    dispatcher = Dispatcher(settings, store, workers, Metrics())
    app = Service(dispatcher, keys, served, any_host=settings.keys is not None).app()
    config = uvicorn.Config(
        app,
        http=patient(settings.patience),
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=5,
        limit_concurrency=MOST_CONNECTIONS,
    )
    dispatcher.start()
    try:
        log.info("nnzoo serves %s at %s", ", ".join(served), _address(listening))
        await _Server(config, dispatcher).serve([listening])
    finally:
        await dispatcher.stop()


class _Server(uvicorn.Server):
    """Lets running jobs end before it stops; a second signal ends it at once."""

    def __init__(self, config: uvicorn.Config, dispatcher: Dispatcher) -> None:
        super().__init__(config)
        self._dispatcher = dispatcher
        self._draining: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._exit, sig)

    def _exit(self, sig: int) -> None:
        if self._draining is not None:
            self.should_exit = self.force_exit = True
            return
        log.info("%s: no more jobs are taken, and those that run may end", signal.Signals(sig).name)
        self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        await self._dispatcher.drain()
        self.should_exit = True
