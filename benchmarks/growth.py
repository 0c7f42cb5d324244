"""How cost grows with what there is more of: tokens, prompts, hooks, invokes, operations, new tokens."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.folders import Size
from benchmarks.measure import Job, alternate, timed
from benchmarks.models import Pair
from benchmarks.report import Row, beside_row, show
from benchmarks.setup import Setup
from nnzoo.architectures.hooks import HookPoint
from nnzoo.generation import generate

SUBJECT = "How cost grows"
LINEAR = 1.3  # how much dearer each of many operations may be than each of few


@dataclass(frozen=True)
class Series:
    """Work of growing size, and what it took."""

    title: str
    unit: str
    sizes: Sequence[int]
    jobs: Callable[[int], dict[str, Job]]
    target: float | None = None  # for what each of the most takes, by what each of the fewest takes
    seconds: dict[str, list[float]] = field(default_factory=dict)  # by whose, for each size

    def measure(self, setup: Setup) -> Row:
        """Fill `seconds`, size by size; the row says what each takes where there are few, and where there are many."""
        for size in self.sizes:
            turns = alternate(self.jobs(size), setup.effort)
            for name in turns.seconds:
                self.seconds.setdefault(name, []).append(turns.median(name))
        few, many = self.sizes[0], self.sizes[-1]
        each = self.seconds["nnzoo"][0] / few, self.seconds["nnzoo"][-1] / many
        work = f"{self.title}: each of {many} {self.unit}"
        return beside_row(
            SUBJECT, work, show(each[1]), f"each of {few} {show(each[0])}", each[1] / each[0], self.target
        )


def all_series(size: Size, setup: Setup, shortest: bool = False) -> list[Series]:
    """What is measured; of each only the two smallest sizes, if asked."""
    pair = Pair(size, setup)
    of_model: dict[str, tuple[str, Sequence[int], Callable[[int], dict[str, Job]]]] = {
        "forward pass": ("tokens", (64, 128, 256, 512, 1024, 2048), lambda n: _passes(pair, (1, n))),
        "forward pass, 64 tokens each": ("prompts", (1, 2, 4, 8, 16, 32), lambda n: _passes(pair, (n, 64))),
        "trace of the middle layer": ("tokens", (64, 128, 256, 512, 1024, 2048), lambda n: _trace(pair, (1, n))),
        "trace of the middle layer, 64 tokens each": ("prompts", (1, 2, 4, 8, 16, 32), lambda n: _trace(pair, (n, 64))),
        "forward pass, 64 tokens": ("hooks", (1, 4, 16, 64, 256), lambda n: _hooked(pair, n)),
        "trace, 16 tokens each": ("invokes", (1, 4, 16, 64, 256), lambda n: _invokes(pair, n)),
        "generation after 64": ("new tokens", (8, 32, 128, 512), lambda n: _generated(pair, n)),
    }
    found = [Series(title, unit, sizes, jobs) for title, (unit, sizes, jobs) in of_model.items()]
    sizes = (100, 300, 1000, 3000, 10000)
    found.append(Series("trace, 64 tokens", "operations", sizes, lambda n: _operations(pair, n), LINEAR))
    if not shortest:
        return found
    return [Series(one.title, one.unit, one.sizes[:2], one.jobs, one.target) for one in found]


def rows(series: Sequence[Series], setup: Setup) -> Iterator[Row]:
    """A row for each series, as it is measured."""
    for one in series:
        with torch.no_grad():
            yield one.measure(setup)


def _passes(pair: Pair, shape: tuple[int, int]) -> dict[str, Job]:
    tokens = pair.tokens(*shape)
    return {
        "nnzoo": timed(lambda: pair.ours(tokens)),
        "transformers": timed(lambda: pair.theirs(tokens, use_cache=False)),
    }


def _trace(pair: Pair, shape: tuple[int, int]) -> dict[str, Job]:
    tokens, layer = pair.tokens(*shape), pair.size.n_layers // 2 - 1

    def trace() -> Tensor:
        with pair.language_model.trace(tokens):
            hidden = pair.blocks[layer].output[0].save()
        return hidden

    return {
        "nnzoo": timed(trace),
        "the blocks alone": timed(lambda: pair.ours(tokens, stop_at_layer=layer + 1)),
    }


def _hooked(pair: Pair, n: int) -> dict[str, Job]:
    tokens, names = pair.tokens(1, 64), [p.name for p in pair.ours.hook_points.values() if not p.on_request]
    hooks = [(names[i % len(names)], _look) for i in range(n)]
    return {"nnzoo": timed(lambda: pair.ours.run_with_hooks(tokens, fwd_hooks=hooks))}


def _look(value: Tensor, hook: HookPoint) -> None:
    """A hook that changes nothing."""


def _invokes(pair: Pair, n: int) -> dict[str, Job]:
    tokens, layer = pair.tokens(n, 16), pair.size.n_layers // 2 - 1

    def trace() -> list[Tensor]:
        saved = []
        with pair.language_model.trace() as tracer:
            for row in tokens:
                with tracer.invoke(row[None]):
                    saved.append(pair.blocks[layer].output[0].save())
        return saved

    return {"nnzoo": timed(trace)}


def _operations(pair: Pair, n: int) -> dict[str, Job]:
    tokens = pair.tokens(1, 64)

    def trace() -> Tensor:
        with pair.language_model.trace(tokens):
            last = pair.blocks[0].output[0][:, -1]
            for _ in range(n):
                last = last + 1
            last.save()
        return last

    return {"nnzoo": timed(trace)}


def _generated(pair: Pair, n: int) -> dict[str, Job]:
    tokens = pair.tokens(1, 64)
    settings = {"do_sample": False, "min_new_tokens": n, "max_new_tokens": n, "pad_token_id": 0}
    mask = torch.ones_like(tokens)
    return {
        "nnzoo": timed(lambda: generate(pair.ours, tokens, max_new_tokens=n)),
        "transformers": timed(lambda: pair.theirs.generate(tokens, attention_mask=mask, **settings)),
    }
