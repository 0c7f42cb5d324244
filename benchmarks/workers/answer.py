"""The peers' side of the line: read a question, do the work, answer with its seconds.

It runs in the peer's environment, which has torch and transformers, and nothing of ours.
"""

import json
import os
import sys
import time

import torch

SAMPLE = 0.02  # as in benchmarks/measure.py
NEW = 32  # as in benchmarks/generating.py


def serve(works):
    """Answer until the line is closed; `works` maps a kind of work to a function that prepares it."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the library prints is no answer
    ready = {}
    for line in sys.stdin:
        if line not in ready:
            kind, folder, batch, n_pos = json.loads(line)
            ready[line] = works[kind](folder, tokens(folder, batch, n_pos))
        print(json.dumps(sample(ready[line])), file=answers, flush=True)


def tokens(folder, batch, n_pos):
    """Random ids of a folder's vocabulary."""
    with open(os.path.join(folder, "config.json")) as file:
        d_vocab = json.load(file)["vocab_size"]
    return torch.randint(0, d_vocab, (batch, n_pos), generator=torch.Generator().manual_seed(0))


def sample(work):
    """Seconds of one piece of work: a call that is not counted, then enough that are."""
    repeat = max(1, round(SAMPLE / seconds(work, 1)))
    return seconds(work, repeat) / repeat


def seconds(work, repeat):
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    for _ in range(repeat):
        work()
    return clock() - start
