"""Greedy generation with a KV cache."""

import torch

from benchmarks.ceilings import Products
from benchmarks.folders import Size
from benchmarks.measure import Job, alternate, timed
from benchmarks.models import Pair
from benchmarks.peers import jobs_of
from benchmarks.report import Row, ratio_row
from benchmarks.setup import Setup
from nnzoo.generation import generate

SUBJECT = "Greedy generation"
NEW = 32


def rows(size: Size, setup: Setup) -> list[Row]:
    """Prompts of 64 tokens and 32 new ones, one and 16, against transformers' `generate` and the products alone."""
    pair, found = Pair(size, setup), []
    peers = 0.5 if size.tiny else 0.77 if setup.device == "cpu" else 0.25
    for batch in (1,) if size.tiny else (1, 16):
        jobs = _jobs(pair, batch) | (jobs_of(setup.peers, "generate", size, pair.folder, (1, 64)) if batch == 1 else {})
        targets = {"transformers": peers} | ({"nnsight's generate": peers} if size.tiny else {})
        if not size.tiny and batch == 1:
            targets["matrix products"] = 1.12 if setup.device == "cpu" else 1.5
        turns = alternate(jobs, setup.effort)
        work = f"{size.name}, {batch}x64 + {NEW} tokens"
        found += [ratio_row(SUBJECT, work, turns, other, targets.get(other)) for other in jobs if other != "nnzoo"]
    return found


def _jobs(pair: Pair, batch: int) -> dict[str, Job]:
    tokens = pair.tokens(batch, 64)
    settings = {"do_sample": False, "min_new_tokens": NEW, "max_new_tokens": NEW, "pad_token_id": 0}
    mask = torch.ones_like(tokens)
    prompt, step = Products(pair.ours, tokens.numel(), unembedded=batch), Products(pair.ours, batch)

    def products() -> None:
        prompt()
        for _ in range(NEW - 1):
            step()

    return {
        "nnzoo": timed(lambda: generate(pair.ours, tokens, max_new_tokens=NEW)),
        "transformers": timed(lambda: pair.theirs.generate(tokens, attention_mask=mask, **settings)),
        "matrix products": timed(torch.no_grad()(products)),
    }
