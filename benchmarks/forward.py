"""The forward pass with nobody listening, and with everybody: a full cache."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.ceilings import Products
from benchmarks.folders import Size
from benchmarks.measure import Effort, Job, alternate, timed
from benchmarks.models import Pair
from benchmarks.peers import Peer, jobs_of
from benchmarks.report import Row, ratio_row

IDLE = "Forward pass, nobody listening"
CACHE = "Forward pass with a full cache"

Shape = tuple[int, int]  # batch, pos


def idle(size: Size, home: Path, peers: Sequence[Peer], effort: Effort) -> list[Row]:
    """Against transformers (without a KV cache: its fastest), and against the model's matrix products alone."""
    pair, rows = Pair(size, home), []
    targets = {"transformers": 0.7 if size.tiny else 1.0}
    for shape in _shapes(size):
        jobs = _idle_jobs(pair, shape) | jobs_of(peers, "forward", size, pair.folder, shape)
        rows += _compared(IDLE, size, shape, jobs, targets, effort)
    return rows


def cached(size: Size, home: Path, peers: Sequence[Peer], effort: Effort) -> list[Row]:
    """`run_with_cache` without a filter, against our own forward pass, and transformers'."""
    pair, rows = Pair(size, home), []
    targets = {} if size.tiny else {"own forward": 1.25}
    for shape in _shapes(size):
        jobs = _cached_jobs(pair, shape) | jobs_of(peers, "cache", size, pair.folder, shape)
        rows += _compared(CACHE, size, shape, jobs, targets, effort)
    return rows


def _shapes(size: Size) -> list[Shape]:
    return [(1, 64)] if size.tiny else [(1, 64), (8, 128)]


def _idle_jobs(pair: Pair, shape: Shape) -> dict[str, Job]:
    tokens = pair.tokens(*shape)
    return {
        "nnzoo": timed(lambda: pair.ours(tokens)),
        "transformers": timed(lambda: pair.theirs(tokens, use_cache=False)),
        "matrix products": timed(Products(pair.ours, tokens.numel())),
    }


def _cached_jobs(pair: Pair, shape: Shape) -> dict[str, Job]:
    tokens = pair.tokens(*shape)
    return {
        "nnzoo": timed(lambda: pair.ours.run_with_cache(tokens)),
        "own forward": timed(lambda: pair.ours(tokens)),
        "transformers' forward": timed(lambda: pair.theirs(tokens, use_cache=False)),
    }


def _compared(
    subject: str, size: Size, shape: Shape, jobs: dict[str, Job], targets: Mapping[str, float], effort: Effort
) -> list[Row]:
    with torch.no_grad():
        turns = alternate(jobs, effort)
    work = "{}, {}x{}".format(size.name, *shape)
    return [ratio_row(subject, work, turns, other, targets.get(other)) for other in jobs if other != "nnzoo"]
