"""What a server is told when it starts: its models, where it listens, and how much it takes."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from nnzoo.remote.limits import GB, Limits


def default_data() -> Path:
    """Where jobs are kept if nobody says: XDG's folder for what outlives a process."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "nnzoo" / "jobs"


@dataclass(frozen=True)
class Settings:
    """A server's settings; sizes are in bytes, times in seconds.

    >>> Settings(models=("nnzoo/tiny-gpt2",)).is_loopback
    True
    """

    models: tuple[str, ...]  # their names
    host: str = "127.0.0.1"  # or unix:/path of a socket
    port: int = 8000  # 0: any that is free
    keys: Path | None = None  # None: any key is taken, which only loopback may do
    data: Path = field(default_factory=default_data)
    paths: Mapping[str, str] = field(default_factory=dict)  # of models that are called otherwise than what is loaded

    workers: int = 1  # of each model
    device: str = "cpu"  # of each worker
    ray: str | None = None  # the address of a cluster that has the workers; None: this machine
    worker_cpus: int | None = None  # of one worker on a cluster; None: 1
    worker_gpus: float | None = None  # the same, for a device of CUDA's; None: 1
    worker_memory: int | None = None  # of one worker, its weights where they are no mapped file included
    joined: int = 8  # jobs that a worker is given at once, when more wait than there are workers
    limits: Limits = field(default_factory=Limits)  # of one request

    queued_jobs: int = 200  # of one key
    queued_bytes: int = 2 * GB  # of one key, uploads under way included
    jobs_per_minute: int = 6000  # of one key
    open_requests: int = 100  # of one key at a time, those that wait for an answer or for events included
    keep_seconds: float = 3600.0  # answers
    keep_bytes: int = 20 * GB  # answers of everybody

    patience: float = 20.0  # with a sender or a reader that stands still
    grace: float = 10.0  # for running jobs when the server is asked to stop

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError("a server has at least one model: nnzoo serve nnzoo/tiny-gpt2")
        doubled = sorted({name for name in self.models if self.models.count(name) > 1})
        if doubled:
            raise ValueError(f"{doubled[0]} is named twice; --workers says how many workers each model has")
        if self.ray is None and (self.worker_cpus or self.worker_gpus):
            raise ValueError("--worker-cpus and --worker-gpus are for workers on a cluster (--ray ADDRESS)")
        if self.worker_gpus and not self.device.startswith("cuda"):
            raise ValueError(f"--worker-gpus is for --device cuda, and the workers' is {self.device}")
        if self.keys is None and not self.is_loopback:
            raise ValueError(
                f"beyond this machine (--host {self.host}) a server needs keys: "
                "`nnzoo keys FILE NAME` makes one, and --keys FILE takes those of a file"
            )

    @property
    def loaded(self) -> dict[str, str]:
        """What is loaded for each model, by its name: a path, or an id of the Hub."""
        return {name: self.paths.get(name, name) for name in self.models}

    @property
    def job_seconds(self) -> float:
        """When a worker is killed: it ends a job by itself at its limit, if the job lets it."""
        return 1.1 * self.limits.seconds + 1

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return self.host in ("127.0.0.1", "::1", "localhost") or self.host.startswith("unix:")
