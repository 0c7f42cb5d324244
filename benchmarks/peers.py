"""nnsight and TransformerLens, each in an environment of its own, taking turns with us.

A peer is a process that answers each line it reads, `["seconds", "trace", folder, 1, 64]`, with the seconds that the
work took there, or with the "values" that it gives. It has the same torch and transformers as we have.
"""

import json
import os
import subprocess
import sys
import venv
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.folders import Size
from benchmarks.measure import Job

WORKERS = Path(__file__).parent / "workers"


@dataclass
class Peer:
    """Another library, and what of our work it can do."""

    name: str
    requirement: str
    worker: str
    work: Collection[str]
    families: Collection[str]
    process: subprocess.Popen | None = field(default=None, repr=False)

    def ask(self, *question: object) -> Any:
        """What it answers. Raises RuntimeError where the process has died."""
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.name} ended at {question}; what it said is above")
        return json.loads(answer)

    def start(self, home: Path, device: str, dtype: str) -> "Peer":
        """Install it if it is not there, and start its process."""
        environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1"}
        environment |= {"BENCHMARK_DEVICE": device, "BENCHMARK_DTYPE": dtype}
        self.process = subprocess.Popen(
            [self.python(home), WORKERS / self.worker], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment,
        )  # fmt: skip
        return self

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait()

    def python(self, home: Path) -> Path:
        """The interpreter of its environment, which is made if it is not there."""
        folder = home / f"{self.name} environment".replace(" ", "-").lower()
        python, done = folder / "bin" / "python", folder / "installed"
        if not done.exists():
            venv.create(folder, with_pip=True, clear=True)
            same = [f"{name}=={version(name).split('+')[0]}" for name in ("torch", "transformers")]
            subprocess.run(
                [python, "-m", "pip", "install", "--quiet", *same, self.requirement], check=True, stdout=sys.stderr
            )
            done.touch()
        return python


def jobs_of(peers: Sequence[Peer], work: str, size: Size, folder: Path, shape: tuple[int, int]) -> dict[str, Job]:
    """A piece of work as a job of every peer that can do it."""

    def job(peer: Peer) -> Job:
        return lambda: peer.ask("seconds", work, str(folder), *shape)

    return {f"{peer.name}'s {work}": job(peer) for peer in able(peers, work, size)}


def values_of(peers: Sequence[Peer], work: str, size: Size, folder: Path, shape: tuple[int, int]) -> dict[str, Tensor]:
    """The numbers that a piece of work gives with every peer that can do it."""
    answers = {peer.name: peer.ask("values", work, str(folder), *shape) for peer in able(peers, work, size)}
    return {name: torch.tensor(answer) for name, answer in answers.items()}


def able(peers: Sequence[Peer], work: str, size: Size) -> list[Peer]:
    """The peers that can do a piece of work with a model."""
    return [peer for peer in peers if work in peer.work and size.family in peer.families]


def all_peers() -> list[Peer]:
    """Those that we know how to run."""
    return [
        Peer(
            "nnsight",
            "nnsight",
            "in_nnsight.py",
            ("trace", "stopped trace", "invokes", "generate", "patching", "patching of heads"),
            ("gpt2", "llama"),
        ),
        # 3 is the last with HookedTransformer, a model of its own
        Peer(
            "TransformerLens",
            "transformer-lens<4",
            "in_transformer_lens.py",
            ("forward", "cache", "generate", "patching", "patching of heads"),
            ("gpt2",),
        ),
    ]
