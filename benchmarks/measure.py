"""Timing two things against each other on a machine that is never quite idle.

All jobs of a comparison take turns in one run, so that what disturbs one disturbs its neighbours; the figure is the
median over the rounds of the ratio within a round.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

Job = Callable[[], float]  # does its work, and says how many seconds it took

SAMPLE = 0.02  # seconds a sample lasts at least, by repeating the work
LONG = 2.0  # seconds of work that needs no call before it


@dataclass(frozen=True)
class Effort:
    """How long a comparison goes on: for so many seconds, and so many rounds at least."""

    seconds: float
    rounds: int


ENOUGH = Effort(seconds=10, rounds=5)
ONCE = Effort(seconds=0, rounds=1)  # says that it runs, and nothing of how fast


def timed(work: Callable[[], object]) -> Job:
    """A job from a function: each sample is a call that is not counted, then enough that are.

    The first call brings code, weights and threads back from wherever the neighbour's turn has left them; where it
    takes seconds that is lost in it, and it counts.
    """

    def job() -> float:
        first = _seconds(work, 1)
        repeat = max(1, round(SAMPLE / first))
        return first if first > LONG else _seconds(work, repeat) / repeat

    return job


def _seconds(work: Callable[[], object], repeat: int) -> float:
    # with one thread, its own time on the processor: other programs cannot stretch that
    on_gpu = torch.cuda.is_initialized()
    clock = time.thread_time if torch.get_num_threads() == 1 and not on_gpu else time.perf_counter
    if on_gpu:
        torch.cuda.synchronize()  # what was asked for before is not this work
    start = clock()
    for _ in range(repeat):
        work()
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - start


@dataclass(frozen=True)
class Comparison:
    """Seconds of every job, round by round.

    >>> turns = Comparison({"ours": [1.0, 2.0, 9.0], "theirs": [2.0, 4.0, 3.0]})
    >>> turns.median("ours"), turns.ratio("ours", "theirs")
    (2.0, 0.5)
    """

    seconds: dict[str, list[float]]

    def median(self, job: str) -> float:
        return median(self.seconds[job])

    def ratio(self, job: str, to: str) -> float:
        """The median, over the rounds, of one job's time by another's."""
        return median(a / b for a, b in zip(self.seconds[job], self.seconds[to], strict=True))

    def difference(self, job: str, to: str) -> float:
        """The median, over the rounds, of how many seconds one job takes beyond another."""
        return median(a - b for a, b in zip(self.seconds[job], self.seconds[to], strict=True))


def alternate(jobs: dict[str, Job], effort: Effort) -> Comparison:
    """Let jobs take turns; every other round runs backwards."""
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    order, start, rounds = list(jobs), time.perf_counter(), 0
    while rounds < effort.rounds or time.perf_counter() - start < effort.seconds:
        for name in order:
            taken[name].append(jobs[name]())
        order.reverse()
        rounds += 1
    return Comparison(taken)
