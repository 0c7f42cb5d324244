"""The peers' side of the line: read a question, do the work, answer with its seconds, or with the numbers it gives.

It runs in the peer's environment, which has torch and transformers, and nothing of ours.
"""

import json
import os
import sys
import time

import torch

SAMPLE, LONG = 0.02, 2.0  # as in benchmarks/measure.py
DEVICE, DTYPE = os.environ.get("BENCHMARK_DEVICE", "cpu"), getattr(torch, os.environ.get("BENCHMARK_DTYPE", "float32"))
NEW = 32 if DEVICE == "cpu" else 128  # as in benchmarks/generating.py


def serve(works):
    """Answer until the line is closed; `works` maps a kind of work to a function that prepares it."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the library prints is no answer
    ready = {}
    for line in sys.stdin:
        asked, *question = json.loads(line)
        if (work := tuple(question)) not in ready:
            kind, folder, batch, n_pos = question
            ready[work] = works[kind](folder, tokens(folder, batch, n_pos))
        answer = sample(ready[work]) if asked == "seconds" else ready[work]().flatten().tolist()
        print(json.dumps(answer), file=answers, flush=True)


def tokens(folder, batch, n_pos):
    """Random ids of a folder's vocabulary."""
    with open(os.path.join(folder, "config.json")) as file:
        d_vocab = json.load(file)["vocab_size"]
    return torch.randint(0, d_vocab, (batch, n_pos), generator=torch.Generator().manual_seed(0)).to(DEVICE)


def sample(work):
    """Seconds of one piece of work: a call that is not counted, then enough that are."""
    first = seconds(work, 1)
    repeat = max(1, round(SAMPLE / first))
    return first if first > LONG else seconds(work, repeat) / repeat


def seconds(work, repeat):
    on_gpu = torch.cuda.is_initialized()
    clock = time.thread_time if torch.get_num_threads() == 1 and not on_gpu else time.perf_counter
    if on_gpu:
        torch.cuda.synchronize()
    start = clock()
    for _ in range(repeat):
        work()
    if on_gpu:
        torch.cuda.synchronize()
    return clock() - start
