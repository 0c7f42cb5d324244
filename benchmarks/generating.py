"""Greedy generation with a KV cache."""

import torch

from benchmarks.ceilings import Products, bandwidth_of, copying
from benchmarks.folders import Size
from benchmarks.measure import Job, alternate, timed
from benchmarks.models import Pair
from benchmarks.peers import jobs_of
from benchmarks.report import Row, beside_row, ratio_row, show
from benchmarks.setup import Setup
from nnzoo.generation import generate

SUBJECT = "Greedy generation"
NEW, NEW_ON_GPU = 32, 128  # as in benchmarks/workers/answer.py
OF_READING = 1.5  # the time in which a graphics card reads the weights


def rows(size: Size, setup: Setup) -> list[Row]:
    """Prompts of 64 tokens and new ones, one and 16, against transformers' `generate` and the least that it takes."""
    pair, found, on_gpu = Pair(size, setup), [], setup.device != "cpu"
    new = NEW_ON_GPU if on_gpu else NEW
    peers = 0.5 if size.tiny else 0.25 if on_gpu else 0.77
    for batch in (1,) if size.tiny else (1, 16):
        jobs = _jobs(pair, batch, new)
        if batch == 1:
            jobs |= jobs_of(setup.peers, "generate", size, pair.folder, (1, 64))
        if not on_gpu:
            jobs["matrix products"] = _products(pair, batch, new)
        targets = {"transformers": peers} | ({"nnsight's generate": peers} if size.tiny else {})
        if not size.tiny and batch == 1:
            targets["matrix products"] = 1.12
        turns = alternate(jobs, setup.effort)
        work = f"{size.name}, {batch}x64 + {new} tokens"
        found += [ratio_row(SUBJECT, work, turns, other, targets.get(other)) for other in jobs if other != "nnzoo"]
        if on_gpu:
            found.append(of_reading(pair, batch, setup))
    return found


def of_reading(pair: Pair, batch: int, setup: Setup) -> Row:
    """What a further token takes, against reading every weight of a product once, as fast as memory is copied."""
    tokens, few, many = pair.tokens(batch, 64), NEW_ON_GPU // 4, NEW_ON_GPU
    jobs = {
        "few": timed(lambda: generate(pair.ours, tokens, max_new_tokens=few)),
        "many": timed(lambda: generate(pair.ours, tokens, max_new_tokens=many)),
        "copy": copying(setup),
    }
    turns = alternate(jobs, setup.effort)
    token = turns.difference("many", "few") / (many - few)
    reading = Products(pair.ours, batch).n_bytes / bandwidth_of(turns)
    work, other = f"{pair.size.name}, {batch}x64: a further token", f"weights read once {show(reading)}"
    return beside_row(SUBJECT, work, show(token), other, token / reading, OF_READING if batch == 1 else None)


def _jobs(pair: Pair, batch: int, new: int) -> dict[str, Job]:
    tokens = pair.tokens(batch, 64)
    settings = {"do_sample": False, "min_new_tokens": new, "max_new_tokens": new, "pad_token_id": 0}
    mask = torch.ones_like(tokens)
    return {
        "nnzoo": timed(lambda: generate(pair.ours, tokens, max_new_tokens=new)),
        "transformers": timed(lambda: pair.theirs.generate(tokens, attention_mask=mask, **settings)),
    }


def _products(pair: Pair, batch: int, new: int) -> Job:
    prompt, step = Products(pair.ours, batch * 64, unembedded=batch), Products(pair.ours, batch)

    def products() -> None:
        prompt()
        for _ in range(new - 1):
            step()

    return timed(torch.no_grad()(products))
