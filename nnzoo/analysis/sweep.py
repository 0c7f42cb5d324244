"""Many small changes to one run, each in a run of its own, as rows of few batches.

The run that everything is compared with is kept where it enters each block, with its keys and values. An experiment
changes something in some block from some position on: it goes on from there, and reads what stands before in the kept
run. Experiments of neighbouring positions share a pass, which each joins at its own block. So nothing before the change
is computed again, neither below it nor to its left, and a metric that reads two logits of the last position unembeds no
more than these.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nnzoo.analysis.metrics import Logit, Metric, Probability, metric_of, name_of
from nnzoo.analysis.prefix import Prefix
from nnzoo.analysis.subject import Subject, Tokens
from nnzoo.architectures.hooked_model import Hooks
from nnzoo.architectures.hooks import HookFunction, HookPoint

# changes a value of its own in place: [batch ...] from a position of the prompts on, which comes with it
Edit = Callable[[Tensor, int], None]

PER_PASS = 1024  # tokens that one pass holds by default: more are hardly faster, and more of them are computed in vain


@dataclass(frozen=True)
class Experiment:
    """A run that goes on from a block and a position, with changes to what enters there, and at hook points later."""

    start: int  # n_layers: what leaves the last block
    stream: Edit | None = None
    edits: Mapping[str, Edit] = field(default_factory=dict)  # by hook point
    first: int = 0  # nothing changes before this position


class Base:
    """A run of the prompts, kept where it enters each block; what experiments go on from.

    `fwd_hooks` listen to this run alone: their changes below a block are in what enters it.
    """

    def __init__(self, subject: Subject, tokens: Tokens, metric: Metric, fwd_hooks: Hooks = ()) -> None:
        self.subject, self.native, self.tokens = subject, subject.native, tokens
        self.batch = len(tokens.ids)
        self.metric = metric_of(subject, metric, self.batch)
        self.keys_and_values = self.native.new_cache()
        kept: list[Tensor] = []
        names = [f"blocks.{i}.hook_resid_pre" for i in range(subject.n_layers)]

        def keep(value: Tensor, point: HookPoint) -> None:
            kept.append(value)

        with torch.no_grad(), self.native.hooks(fwd_hooks):
            handles = [self.native.hook_points[name].add_reader(keep) for name in names]
            try:
                last = self.native(
                    tokens.ids,
                    attention_mask=tokens.mask,
                    cache=self.keys_and_values,
                    stop_at_layer=subject.n_layers,
                )
            finally:
                for handle in handles:
                    handle.remove()
        self.streams = [*kept, last]

    @cached_property
    def score(self) -> float:
        """The metric of this run."""
        return self._scores_of(self.streams[-1], 0).item()

    @cached_property
    def logits(self) -> Float[Tensor, "batch pos d_vocab"]:
        """What this run ends with."""
        return self.native.finish(self.streams[-1])

    @property
    def quantity(self) -> str:
        return name_of(self.metric)

    @torch.no_grad()
    def run(self, experiments: Sequence[Experiment], batch_size: int | None = None, what: str = "") -> Tensor:
        """The metric of each experiment, [experiment] in their order; `batch_size` of them make one pass."""
        scores = self.streams[0].new_empty(len(experiments))
        # hooks that are not ours may count on whole prompts
        whole = any(point.hooks for point in self.native.hook_points.values())
        with progress(len(experiments), what) as bar:
            for chosen, first in _passes(experiments, self.tokens, batch_size):
                scores[chosen] = self._pass([experiments[i] for i in chosen], 0 if whole else first)
                bar.update(len(chosen))
        return scores

    def _pass(self, experiments: list[Experiment], first: int) -> Float[Tensor, "experiment"]:
        """Experiments in the order of their blocks, from a position on."""
        running: list[Experiment] = []
        x = self.streams[0][:0, first:]
        with self.native.hooks([(name, _rowwise(name, running, first)) for name in _names(experiments)]):
            for layer in range(experiments[0].start, self.subject.n_layers + 1):
                if joining := [one for one in experiments if one.start == layer]:
                    running += joining
                    x = torch.cat([x, self._entering(joining, layer, first)])
                    x, span = self.native.begin_inside(x, *self._before(len(running), first))
                if layer < self.subject.n_layers:
                    x = self.native.blocks[layer](x, span)
        return self._scores_of(x, first)

    def _entering(self, joining: list[Experiment], layer: int, first: int) -> Float[Tensor, "rows pos d_model"]:
        x = self.streams[layer][:, first:].repeat(len(joining), 1, 1)
        for rows, experiment in zip(x.split(self.batch), joining, strict=True):
            if experiment.stream is not None:
                experiment.stream(rows, first)
        return x

    def _before(self, n: int, first: int) -> tuple[Tensor | None, Prefix | None]:
        """The mask of n experiments from a position on, and what they may look back at."""
        mask = self.tokens.repeated(n).mask
        return None if mask is None else mask[:, first:], Prefix(self.keys_and_values, first, n) if first else None

    def _scores_of(self, x: Float[Tensor, "rows pos d_model"], first: int) -> Float[Tensor, "experiment"]:
        """The metric of what leaves the last block from a position on, for each whole batch of rows."""
        experiments = x.unflatten(0, (-1, self.batch))
        if isinstance(self.metric, (Logit, Probability)) and not self._listened_at_the_end:
            read = _behind(self.streams[-1][:, :first], experiments)[:, :, self.metric.position]
            normed = self.native.ln_final.fused(read)
            return self.metric.of_stream(normed, self.native.unembed.weight, self.native.unembed.bias).mean(dim=-1)
        before = self.logits[:, :first] if first else None
        logits = self.native.finish(x).unflatten(0, (-1, 1, self.batch))
        return torch.cat([self._checked(self.metric(_behind(before, one)[0])) for one in logits])

    @property
    def _listened_at_the_end(self) -> bool:
        points = self.native.hook_points
        return any(point.hooks for name, point in points.items() if name.startswith(("ln_final", "unembed")))

    def _checked(self, score: Any) -> Tensor:
        if not isinstance(score, Tensor) or score.numel() not in (1, self.batch):
            got = list(score.shape) if isinstance(score, Tensor) else type(score).__name__
            raise ValueError(f"a metric gives a scalar or [batch] = [{self.batch}] for logits, not {got}")
        return score.mean().view(1)


def _behind(
    before: Float[Tensor, "batch first some"] | None, rows: Float[Tensor, "experiment batch new some"]
) -> Float[Tensor, "experiment batch pos some"]:
    """What experiments give from a position on, behind what stands before it in the run that they share."""
    return rows if before is None else torch.cat([before.expand(len(rows), -1, -1, -1), rows], dim=2)


def _names(experiments: list[Experiment]) -> list[str]:
    return list(dict.fromkeys(name for experiment in experiments for name in experiment.edits))


def _rowwise(name: str, running: list[Experiment], first: int) -> HookFunction:
    def change(value: Tensor, hook: HookPoint) -> None:
        for rows, experiment in zip(value.unflatten(0, (len(running), -1)), running, strict=True):
            if name in experiment.edits:
                experiment.edits[name](rows, first)

    return change


def _passes(
    experiments: Sequence[Experiment], tokens: Tokens, batch_size: int | None
) -> Iterator[tuple[list[int], int]]:
    """Experiments that make a pass, in the order of their blocks, and the position that it begins at."""
    passes: list[list[int]] = []
    for i in sorted(range(len(experiments)), key=lambda i: (-experiments[i].first, experiments[i].start)):
        n = len(passes[-1]) + 1 if passes else 1
        size = n * len(tokens.ids) * (tokens.n_pos - experiments[i].first)
        if not passes or (n > batch_size if batch_size else n > 1 and size > PER_PASS):
            passes.append([])
        passes[-1].append(i)
    for chosen in passes:
        yield sorted(chosen, key=lambda i: experiments[i].start), experiments[chosen[-1]].first


def progress(total: int, what: str) -> Any:
    """A progress bar for what takes longer than a second."""
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=what, delay=1.0, leave=False)
