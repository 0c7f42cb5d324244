"""A Ray cluster of two nodes on this machine, in a process of its own: `with RayCluster() as cluster`.

Each node has room for one worker. Both ask for a token that only its owner can read.
"""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import remote_jobs
from layout import ROOT
from nnzoo.remote import running

STORE = 100 * 2**20  # bytes of each node's object store
QUICK = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 500, "health_check_timeout_ms": 2000}


def answers(model: Any, requests: Sequence[bytes], *how: Any) -> Iterator[tuple[int, bytes | None]]:
    """Graphs are run; what is asked of the stand-in, it does."""
    runner = remote_jobs if all(b'"do"' in request for request in requests) else running
    return runner.answers(model, requests, *how)


class RayCluster:
    """The processes of a cluster; `environment` is what a process needs that joins it."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="nnzoo-ray-"))  # a short name: sockets are in it
        token = self.folder / "token"
        token.touch(0o600)
        token.write_text(secrets.token_hex(32))
        self.environment = {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": str(self.folder),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # which is where Ray takes 127.0.0.1 for what it is
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "PYTHONPATH": os.pathsep.join([str(ROOT / "tests"), str(ROOT)]),
            "OMP_NUM_THREADS": "1",
        }
        with (self.folder / "log.txt").open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, __file__],
                env={**os.environ, **self.environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.address = self._answer()

    def kill_node(self) -> None:
        """End the node that is not the head, as a machine ends that loses its power."""
        self._ask("kill")

    def behead(self) -> None:
        """End the process that holds the cluster together."""
        self._ask("behead")

    def add_node(self, gpus: int = 0) -> None:
        """Add one like the others, and so many GPUs that Ray believes in."""
        self._ask(f"add {gpus}")

    def _ask(self, what: str) -> None:
        print(what, file=self._process.stdin, flush=True)
        assert self._answer() == what

    def _answer(self) -> str:
        line = self._process.stdout.readline().strip()
        assert line, (self.folder / "log.txt").read_text()
        return line

    def __enter__(self) -> "RayCluster":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.stdin.close()
        self._process.wait(30)
        shutil.rmtree(self.folder, ignore_errors=True)


def run() -> None:
    """Start the nodes, say their address, and do what is asked until nobody asks any more."""
    from ray.cluster_utils import Cluster

    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": STORE}
    head = {**node, "include_dashboard": False, "_system_config": QUICK}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        other = cluster.add_node(**node)
        print(cluster.address, flush=True)
        for line in sys.stdin:
            what, *gpus = line.split()
            if what == "kill":
                cluster.remove_node(other, allow_graceful=False)
            elif what == "behead":
                cluster.head_node.kill_gcs_server(check_alive=False)
            else:
                other = cluster.add_node(**node, num_gpus=int(gpus[0]))
            print(line.strip(), flush=True)
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    run()
