"""A trace that saves one layer: what it costs beyond the blocks that it needs, and what the others ask for it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from benchmarks.folders import Size
from benchmarks.measure import alternate, timed
from benchmarks.models import Pair
from benchmarks.peers import jobs_of
from benchmarks.report import Row, bound_row, ratio_row
from benchmarks.setup import Setup
from nnzoo.tracing.plan import plan

SUBJECT = "Trace that saves the middle layer"
MANY = "Many prompts in one trace"
MOST = 200.0  # microseconds that are no block's
TARGETS = {"nnsight's trace": 0.43, "nnsight's stopped trace": 1.0}


def rows(size: Size, setup: Setup) -> list[Row]:
    """Against the forward pass up to that layer, and transformers' whole one."""
    pair, layer = Pair(size, setup), size.n_layers // 2 - 1
    tokens, model = pair.tokens(1, 64), pair.language_model
    blocks = pair.blocks

    def trace() -> torch.Tensor:
        with model.trace(tokens):
            hidden = blocks[layer].output[0].save()
        return hidden

    jobs = {
        "nnzoo": timed(trace),
        "own blocks": timed(lambda: pair.ours(tokens, stop_at_layer=layer + 1)),
        "transformers' forward": timed(lambda: pair.theirs(tokens, use_cache=False)),
    }
    for kind in ("trace", "stopped trace"):
        jobs |= jobs_of(setup.peers, kind, size, pair.folder, (1, 64))
    with torch.no_grad():
        turns = alternate(jobs, setup.effort)
    work = f"{size.name}, 1x64, layer {layer} of {size.n_layers}"
    targets = {"nnsight's trace": 0.4, "transformers' forward": 0.4} if size.tiny else TARGETS
    others = [name for name in jobs if name not in ("nnzoo", "own blocks")]
    found = [ratio_row(SUBJECT, work, turns, other, targets.get(other)) for other in others]
    if size.tiny:  # elsewhere the noise of the pass is larger than what is asked
        ours = {"recording": lambda: _recording(pair, tokens, layer)}
        ours |= {name: jobs[name] for name in ("nnzoo", "own blocks")}
        with one_thread(), torch.no_grad():
            turns = alternate(ours, setup.effort)
        recording, beyond = turns.median("recording"), turns.difference("nnzoo", "own blocks")
        found.append(bound_row(SUBJECT, f"{work}, one thread: recording and planning", 1e6 * recording, MOST, "us"))
        found.append(bound_row(SUBJECT, f"{work}, one thread: all beyond its own blocks", 1e6 * beyond, MOST, "us"))
    return found


def _recording(pair: Pair, tokens: torch.Tensor, layer: int) -> float:
    """Seconds from the prompt to the plan. The pass runs afterwards, and leaves the caches to the next time."""
    start = time.perf_counter()
    with pair.language_model.trace(tokens) as tracer:
        hidden = pair.blocks[layer].output[0].save()
        plan([hidden._node], tracer.recorder.puts, None)
        taken = time.perf_counter() - start
    return taken


@contextmanager
def one_thread() -> Iterator[None]:
    """Recording is one thread's work; a second one of the blocks falls asleep meanwhile, and wakes up in their time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def invokes(size: Size, setup: Setup) -> list[Row]:
    """64 prompts, each in an invoke of its own, against the same rows as one prompt of the trace."""
    pair, layer = Pair(size, setup), size.n_layers // 2 - 1
    tokens, model = pair.tokens(64, 16), pair.language_model
    blocks = pair.blocks

    def each() -> list[torch.Tensor]:
        saved = []
        with model.trace() as tracer:
            for row in tokens:
                with tracer.invoke(row[None]):
                    saved.append(blocks[layer].output[0].save())
        return saved

    def together() -> torch.Tensor:
        with model.trace(tokens):
            hidden = blocks[layer].output[0].save()
        return hidden

    jobs = {"nnzoo": timed(each), "the same as one batch": timed(together)}
    jobs |= jobs_of(setup.peers, "invokes", size, pair.folder, (64, 16))
    with torch.no_grad():
        turns = alternate(jobs, setup.effort)
    work = f"{size.name}, 64 prompts of 16 tokens, layer {layer} of {size.n_layers}"
    targets = {"nnsight's invokes": 0.5}
    return [ratio_row(MANY, work, turns, other, targets.get(other)) for other in jobs if other != "nnzoo"]
