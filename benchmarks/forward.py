"""The forward pass with nobody listening, and with everybody: a full cache."""

from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.ceilings import Products
from benchmarks.folders import Size
from benchmarks.measure import Effort, Job, alternate, timed
from benchmarks.models import Pair
from benchmarks.peers import jobs_of
from benchmarks.report import Row, ratio_row
from benchmarks.setup import Setup

IDLE = "Forward pass, nobody listening"
CACHE = "Forward pass with a full cache"
LAST = "Trace that reads only the last position's logits"

PRODUCTS = "matrix products"

Shape = tuple[int, int]  # batch, pos


def idle(size: Size, setup: Setup) -> list[Row]:
    """Against transformers (without a KV cache: its fastest), and against the model's matrix products alone."""
    pair, rows = Pair(size, setup), []
    for shape in _shapes(size):
        of_transformers = 0.65 if size.tiny else 0.85 if shape == (1, 64) else 0.92
        targets = {"transformers": of_transformers} if size.tiny else {"transformers": of_transformers, PRODUCTS: 1.08}
        jobs = _idle_jobs(pair, shape) | jobs_of(setup.peers, "forward", size, pair.folder, shape)
        rows += _compared(IDLE, size, shape, jobs, targets, setup.effort)
    return rows


def cached(size: Size, setup: Setup) -> list[Row]:
    """`run_with_cache` without a filter, against our own forward pass, and transformers'."""
    pair, rows = Pair(size, setup), []
    targets = {} if size.tiny else {"own forward": 1.25, "TransformerLens's cache": 0.77}
    for shape in _shapes(size):
        jobs = _cached_jobs(pair, shape) | jobs_of(setup.peers, "cache", size, pair.folder, shape)
        rows += _compared(CACHE, size, shape, jobs, targets, setup.effort)
    return rows


def last_logits(size: Size, setup: Setup) -> list[Row]:
    """A trace that saves a slice of the logits, against transformers' forward pass."""
    pair = Pair(size, setup)
    tokens, model = pair.tokens(1, 64), pair.language_model

    def trace() -> Tensor:
        with model.trace(tokens):
            last = model.output[:, -1].save()
        return last

    jobs = {
        "nnzoo": timed(trace),
        "transformers' forward": timed(lambda: pair.theirs(tokens, use_cache=False)),
        PRODUCTS: timed(Products(pair.ours, tokens.numel(), unembedded=1)),
    }
    targets = {"transformers' forward": 0.68} if (size.family, size.tiny) == ("gpt2", False) else {}
    return _compared(LAST, size, (1, 64), jobs, targets, setup.effort)


def _shapes(size: Size) -> list[Shape]:
    return [(1, 64)] if size.tiny else [(1, 64), (8, 128)]


def _idle_jobs(pair: Pair, shape: Shape) -> dict[str, Job]:
    tokens = pair.tokens(*shape)
    return {
        "nnzoo": timed(lambda: pair.ours(tokens)),
        "transformers": timed(lambda: pair.theirs(tokens, use_cache=False)),
        PRODUCTS: timed(Products(pair.ours, tokens.numel())),
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
