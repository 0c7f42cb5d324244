"""Many small changes to one run, each in a run of its own, as rows of few batches.

The run that everything is compared with is kept where it enters each block. An experiment changes something in some
block, so that it goes on from there, and experiments that go on from the same block run together. Nothing below the
change is computed again, and a metric that reads two logits of the last position unembeds no more than these.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nnzoo.analysis.metrics import Logit, Metric, metric_of, name_of
from nnzoo.analysis.subject import Subject, Tokens
from nnzoo.architectures.hooked_model import Hooks
from nnzoo.architectures.hooks import HookFunction, HookPoint

Edit = Callable[[Tensor], None]  # changes a value of its own [batch ...] in place

PER_PASS = 2048  # tokens that one pass holds by default: more are no faster, and take more memory


@dataclass(frozen=True)
class Experiment:
    """A run that goes on from a block, with changes to what enters it and at hook points from there on."""

    start: int  # n_layers: what leaves the last block
    stream: Edit | None = None
    edits: Mapping[str, Edit] = field(default_factory=dict)  # by hook point


class Base:
    """A run of the prompts, kept where it enters each block; what experiments go on from.

    `fwd_hooks` listen to this run alone: their changes below a block are in what enters it.
    """

    def __init__(self, subject: Subject, tokens: Tokens, metric: Metric, fwd_hooks: Hooks = ()) -> None:
        self.subject, self.native, self.tokens = subject, subject.native, tokens
        self.batch = len(tokens.ids)
        self.metric = metric_of(subject, metric, self.batch)
        kept: list[Tensor] = []
        names = [f"blocks.{i}.hook_resid_pre" for i in range(subject.n_layers)]

        def keep(value: Tensor, point: HookPoint) -> None:
            kept.append(value)

        with torch.no_grad(), self.native.hooks(fwd_hooks):
            handles = [self.native.hook_points[name].add_reader(keep) for name in names]
            try:
                last = self.native(tokens.ids, attention_mask=tokens.mask, stop_at_layer=subject.n_layers)
            finally:
                for handle in handles:
                    handle.remove()
        self.streams = [*kept, last]

    @cached_property
    def score(self) -> float:
        """The metric of this run."""
        return self.scores_of(self.streams[-1]).item()

    @property
    def quantity(self) -> str:
        return name_of(self.metric)

    def scores_of(self, x: Float[Tensor, "rows pos d_model"]) -> Float[Tensor, "experiment"]:
        """The metric of what leaves the last block, for each whole batch of rows."""
        experiments = x.unflatten(0, (-1, self.batch))
        if isinstance(self.metric, Logit) and not self._listened_at_the_end:
            at = experiments[:, :, self.metric.position]
            normed = self.native.ln_final.fused(at)
            return self.metric.of_stream(normed, self.native.unembed.weight, self.native.unembed.bias).mean(dim=-1)
        logits = self.native.finish(x).unflatten(0, (-1, self.batch))
        if isinstance(self.metric, Logit):
            return self.metric(logits).mean(dim=-1)
        return torch.stack([self._checked(self.metric(one)) for one in logits])

    @property
    def _listened_at_the_end(self) -> bool:
        points = self.native.hook_points
        return any(point.hooks for name, point in points.items() if name.startswith(("ln_final", "unembed")))

    def _checked(self, score: Any) -> Tensor:
        if not isinstance(score, Tensor) or score.numel() not in (1, self.batch):
            got = list(score.shape) if isinstance(score, Tensor) else type(score).__name__
            raise ValueError(f"a metric gives a scalar or [batch] = [{self.batch}] for logits, not {got}")
        return score.mean()

    @torch.no_grad()
    def run(self, experiments: Sequence[Experiment], batch_size: int | None = None, what: str = "") -> Tensor:
        """The metric of each experiment, [experiment] in their order; `batch_size` of them make one pass."""
        per_pass = batch_size or max(1, PER_PASS // self.tokens.ids.numel())
        order = sorted(range(len(experiments)), key=lambda i: experiments[i].start)
        scores = self.streams[0].new_empty(len(experiments))
        with progress(len(experiments), what) as bar:
            for chosen in _chunks(order, experiments, per_pass):
                scores[chosen] = self._pass([experiments[i] for i in chosen])
                bar.update(len(chosen))
        return scores

    def _pass(self, experiments: list[Experiment]) -> Float[Tensor, "experiment"]:
        start, n = experiments[0].start, len(experiments)
        x = self.streams[start].repeat(n, 1, 1)
        for rows, experiment in zip(x.unflatten(0, (n, self.batch)), experiments, strict=True):
            if experiment.stream is not None:
                experiment.stream(rows)
        if start == self.subject.n_layers:
            return self.scores_of(x)
        hooks: Hooks = [(name, _rowwise(name, experiments)) for name in _names(experiments)]
        mask = self.tokens.repeated(n).mask
        with self.native.hooks(hooks):
            x = self.native(x, start_at_layer=start, stop_at_layer=self.subject.n_layers, attention_mask=mask)
        return self.scores_of(x)


def _names(experiments: list[Experiment]) -> list[str]:
    return list(dict.fromkeys(name for experiment in experiments for name in experiment.edits))


def _rowwise(name: str, experiments: list[Experiment]) -> HookFunction:
    def change(value: Tensor, hook: HookPoint) -> None:
        for rows, experiment in zip(value.unflatten(0, (len(experiments), -1)), experiments, strict=True):
            if name in experiment.edits:
                experiment.edits[name](rows)

    return change


def _chunks(order: list[int], experiments: Sequence[Experiment], most: int) -> Iterator[list[int]]:
    """Experiments that go on from the same block, at most so many together."""
    chunk: list[int] = []
    for i in order:
        if chunk and (len(chunk) == most or experiments[i].start != experiments[chunk[0]].start):
            yield chunk
            chunk = []
        chunk.append(i)
    if chunk:
        yield chunk


def progress(total: int, what: str) -> Any:
    """A progress bar for what takes longer than a second."""
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=what, delay=1.0, leave=False)
