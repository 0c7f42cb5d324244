"""Greedy generation with a KV cache."""

from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.folders import Size
from benchmarks.measure import Effort, alternate, timed
from benchmarks.models import Pair
from benchmarks.peers import Peer, jobs_of
from benchmarks.report import Row, ratio_row
from nnzoo.generation import generate

SUBJECT = "Greedy generation"
NEW = 32


def rows(size: Size, home: Path, peers: Sequence[Peer], effort: Effort) -> list[Row]:
    """A prompt of 64 tokens and 32 new ones, against transformers' `generate`."""
    pair = Pair(size, home)
    tokens = pair.tokens(1, 64)
    settings = {"do_sample": False, "min_new_tokens": NEW, "max_new_tokens": NEW, "pad_token_id": 0}
    mask = torch.ones_like(tokens)
    jobs = {
        "nnzoo": timed(lambda: generate(pair.ours, tokens, max_new_tokens=NEW)),
        "transformers": timed(lambda: pair.theirs.generate(tokens, attention_mask=mask, **settings)),
    } | jobs_of(peers, "generate", size, pair.folder, (1, 64))
    turns = alternate(jobs, effort)
    work = f"{size.name}, 1x64 + {NEW} tokens"
    return [ratio_row(SUBJECT, work, turns, other) for other in jobs if other != "nnzoo"]
