"""Where a run measures, beside whom, and for how long."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.measure import ENOUGH, Effort
from benchmarks.peers import Peer


@dataclass(frozen=True)
class Setup:
    """What all subjects of a run share."""

    home: Path  # of checkpoints and environments
    peers: Sequence[Peer] = ()
    effort: Effort = ENOUGH
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def at_most(self, rounds: int) -> "Setup":
        """The same for work that takes long: fewer rounds."""
        return replace(self, effort=Effort(self.effort.seconds, min(rounds, self.effort.rounds)))
