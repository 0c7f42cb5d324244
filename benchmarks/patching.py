"""Patching every residual vector of a prompt: a sweep, a run for each patch, and what the others ask for it."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.folders import Size
from benchmarks.measure import Effort, alternate, timed
from benchmarks.models import Pair
from benchmarks.peers import Peer, jobs_of
from benchmarks.report import Row, ratio_row
from nnzoo.analysis import patch_activations

SUBJECT = "Patching all layers and positions"
TARGET = 0.25  # of the time of one run for each patch


def rows(size: Size, home: Path, peers: Sequence[Peer], effort: Effort) -> list[Row]:
    """Against the runs one by one, with our own hooks."""
    pair, shape = Pair(size, home), (1, 16 if size.tiny else 8)
    corrupted = pair.tokens(*shape)
    clean = corrupted.roll(1)
    jobs = {
        "nnzoo": timed(lambda: patch_activations(pair.ours, corrupted, clean, (1, 2))),
        "one run a patch": timed(lambda: one_by_one(pair, corrupted, clean)),
    }
    jobs |= jobs_of(peers, "patching", size, pair.folder, shape)
    with torch.no_grad():
        turns = alternate(jobs, effort)
    work = f"{size.name}, {size.n_layers} layers x {shape[1]} positions"
    targets = {"one run a patch": TARGET} if size.n_layers >= 12 else {}
    return [ratio_row(SUBJECT, work, turns, other, targets.get(other)) for other in jobs if other != "nnzoo"]


def one_by_one(pair: Pair, corrupted: Tensor, clean: Tensor) -> Tensor:
    """The same numbers, each from a run of the whole model with a hook."""
    model, n_layers = pair.ours, len(pair.ours.blocks)
    _, cache = model.run_with_cache(clean, names_filter="*hook_resid_pre")
    found = torch.zeros(n_layers, corrupted.shape[1])
    for layer, pos in product(range(n_layers), range(corrupted.shape[1])):

        def put(value: Tensor, hook: object, layer: int = layer, pos: int = pos) -> None:
            value[:, pos] = cache["resid_pre", layer][:, pos]

        logits = model.run_with_hooks(corrupted, fwd_hooks=[(f"blocks.{layer}.hook_resid_pre", put)])
        found[layer, pos] = (logits[:, -1, 1] - logits[:, -1, 2]).mean()
    return found
