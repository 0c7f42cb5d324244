"""Path patching: what one head does by its direct path to another, or to the end, and by no other way.

Papers: Wang et al. 2022, Interpretability in the Wild (https://arxiv.org/abs/2211.00593); Goldowsky-Dill et al. 2023,
Localizing Model Behavior with Path Patching (https://arxiv.org/abs/2304.05969).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from nnzoo.analysis.metrics import Metric
from nnzoo.analysis.results import Axis, Effects
from nnzoo.analysis.sites import values_at
from nnzoo.analysis.subject import Model, Prompts, Subject, Tokens, exclusive
from nnzoo.analysis.sweep import Base, Edit, Experiment

Head = tuple[int, int]  # layer, head


@exclusive
def patch_paths(
    model: Model,
    base: Prompts,
    source: Prompts,
    metric: Metric,
    *,
    receivers: Sequence[Head] | None = None,
    into: str = "q",
    by: str = "head",
    through_mlps: bool = True,
    batch_size: int | None = None,
) -> Effects:
    """The metric of the run on `base` after what each head writes on `source` was sent down its direct paths.

    The sender's output is exchanged while every other head keeps what it wrote on `base`; MLPs are computed anew on
    the way (in Wang et al.'s manner), or keep what they wrote too (`through_mlps=False`). What arrives is the end of
    the residual stream, or, for `receivers` [(layer, head), ...], their queries, keys or values (`into` "q", "k", "v"):
    these are then put into the run on `base`, whose other heads see no change but theirs. With grouped queries the
    keys and values of a head are those of its whole group.

    Values are [layer head], by the sender; `by="head pos"` exchanges what it writes at one position alone, [layer head
    pos]. One that stands before no receiver leaves the metric as it is. Raises ValueError for a receiver that is not
    there, and where prompts do not match.

    >>> from nnzoo import LanguageModel
    >>> model = LanguageModel("nnzoo/tiny-gpt2")
    >>> clean = "When Mary and John went to the store, John gave a drink to"
    >>> corrupted = "When Mary and John went to the store, Mary gave a drink to"
    >>> direct = patch_paths(model, clean, corrupted, (" Mary", " John"))
    >>> direct.shape
    {'layer': 4, 'head': 4}
    >>> to_queries = patch_paths(model, clean, corrupted, (" Mary", " John"), receivers=[(3, 0)], into="q")
    >>> to_queries.change.at(layer=3).values
    tensor([0., 0., 0., 0.])
    """
    subject = Subject(model)
    base_tokens, source_tokens = subject.pair(base, source)
    wanted = None if receivers is None else _checked(subject, receivers, into)
    axes = _axes(subject, base_tokens, by)
    run, end = Base(subject, base_tokens, metric), Base(subject, source_tokens, metric)
    frozen = _Frozen(subject, run, values_at(subject, source_tokens, _names(subject, "attn.hook_z")), through_mlps)
    if wanted is None:
        arriving, title = partial(_at_the_end, run, frozen), "direct paths to the logits"
    else:
        arriving = partial(_at_heads, run, frozen, wanted, into)
        title = f"paths into {into} of {', '.join(f'L{layer}H{head}' for layer, head in wanted)}"
    positions = range(base_tokens.n_pos) if len(axes) == 3 else [None]
    scores = _scores(run, arriving, positions, batch_size).view([len(axis.labels) for axis in axes])
    return Effects(title, run.quantity, scores, axes, run.score, end.score)


def _axes(subject: Subject, tokens: Tokens, by: str) -> tuple[Axis, ...]:
    if by not in ("head", "head pos"):
        raise ValueError(f"senders are gone through by 'head' or by 'head pos', not {by!r}")
    return tuple(subject.axis(name, tokens) for name in ("layer", *by.split()))


def _names(subject: Subject, place: str) -> list[str]:
    return [f"blocks.{i}.{place}" for i in range(subject.n_layers)]


def _checked(subject: Subject, receivers: Sequence[Head], into: str) -> list[Head]:
    if into not in ("q", "k", "v"):
        raise ValueError(f"into is 'q', 'k' or 'v', not {into!r}")
    if not receivers:
        raise ValueError("receivers are (layer, head) pairs, or None for the end of the model; the list is empty")
    subject.check_heads(receivers)
    return list(receivers)


class _Frozen:
    """The residual stream after one head was exchanged, while all other heads keep what they wrote."""

    def __init__(self, subject: Subject, run: Base, source_z: list[Tensor], through_mlps: bool) -> None:
        self.subject, self.through_mlps, self.source_z = subject, through_mlps, source_z
        mlps = subject.native.has_mlps
        middle = ["hook_resid_mid", "hook_mlp_out"] if mlps else ["hook_resid_post"]
        places = ["attn.hook_z", "hook_attn_out", *middle]
        names = [name for place in places for name in _names(subject, place)]
        values, n = values_at(subject, run.tokens, names), subject.n_layers
        parts = [values[i * n : (i + 1) * n] for i in range(len(places))]
        self.z, self.attn_out, self.mid, self.mlp_out = [*parts, []][:4]  # without MLPs the middle is the end

    def entering(self, layer: int) -> Iterator[tuple[int, Float[Tensor, "head batch pos d_model"]]]:
        """What enters each later block, and leaves the last, after one head of `layer` was exchanged, head by head."""
        block: Any = self.subject.native.blocks[layer]
        change = einsum(self.source_z[layer] - self.z[layer], block.attn.W_O, "b p h e, h e d -> h b p d")
        x = self._through_mlp(layer, self.mid[layer] + change)
        for later in range(layer + 1, self.subject.n_layers):
            yield later, x
            x = self._through_mlp(later, x + self.attn_out[later])
        yield self.subject.n_layers, x

    def _through_mlp(self, layer: int, x: Tensor) -> Tensor:
        block: Any = self.subject.native.blocks[layer]
        if not self.mlp_out:
            return x
        if not self.through_mlps:
            return x + self.mlp_out[layer]
        rows = x.flatten(0, 1)
        return x + block.mlp(block.ln2.fused(rows)).view_as(x)


@dataclass(frozen=True)
class _Arrival:
    """What arrives at a place from each head of a layer, [head batch pos d], and where it is put."""

    values: Tensor
    base: Tensor  # what stands there without any change, [batch pos d]
    layer: int  # n_layers: the end of the stream
    name: str = ""  # of the hook point of the receiver, and which of its heads
    head: int | None = None

    def edit(self, sender: int, position: int | None) -> Edit:
        """The change that puts there what one sender says, at all positions or at one.

        At the others a receiver hears what it hears in the base run, whatever receivers below it have changed.
        """

        def edit(rows: Tensor, first: int) -> None:
            there = rows if self.head is None else rows[:, :, self.head]
            if position is None:
                there[:] = self.values[sender][:, first:]
            else:
                there[:] = self.base[:, first:]
                there[:, position - first] = self.values[sender][:, position]

        return edit


Arriving = Callable[[int], list[_Arrival]]  # from the heads of a layer


@torch.no_grad()
def _scores(run: Base, arriving: Arriving, positions: Sequence[int | None], batch_size: int | None) -> Tensor:
    """The metric for every head of every layer and for each position (None: all at once)."""
    n_layers, n_heads = run.subject.n_layers, run.subject.n_heads
    scores = run.streams[0].new_full((n_layers, n_heads * len(positions)), run.score)
    for layer in range(n_layers):
        if arrivals := arriving(layer):
            experiments = [_experiment(arrivals, *sender) for sender in product(range(n_heads), positions)]
            scores[layer] = run.run(experiments, batch_size, f"path patching, layer {layer}")
    return scores


def _experiment(arrivals: list[_Arrival], sender: int, position: int | None) -> Experiment:
    start, first = min(one.layer for one in arrivals), position or 0
    if not arrivals[0].name:
        return Experiment(start, stream=arrivals[0].edit(sender, position), first=first)
    return Experiment(start, edits=_edits(arrivals, sender, position), first=first)


def _edits(arrivals: list[_Arrival], sender: int, position: int | None) -> dict[str, Edit]:
    """What one sender changes, by hook point: several receivers may stand at one."""
    edits: dict[str, list[Edit]] = {}
    for one in arrivals:
        edits.setdefault(one.name, []).append(one.edit(sender, position))

    def together(several: list[Edit]) -> Edit:
        def edit(rows: Tensor, first: int) -> None:
            for one in several:
                one(rows, first)

        return edit

    return {name: together(several) for name, several in edits.items()}


def _at_the_end(run: Base, frozen: _Frozen, layer: int) -> list[_Arrival]:
    *_, (_, x) = frozen.entering(layer)
    return [_Arrival(x, run.streams[-1], run.subject.n_layers)]


def _at_heads(run: Base, frozen: _Frozen, receivers: list[Head], into: str, layer: int) -> list[_Arrival]:
    """New queries, keys or values of those receivers that stand above a layer."""
    above = [(at, head) for at, head in receivers if at > layer]
    streams = dict(frozen.entering(layer)) if above else {}
    found = []
    for at, head in above:
        block: Any = run.native.blocks[at]
        weight, bias = (getattr(block.attn, f"{kind}_{into.upper()}") for kind in "Wb")
        own = head * len(weight) // run.subject.n_heads  # with grouped queries: the head whose keys and values it has
        rows = torch.cat([streams[at], run.streams[at][None]])
        heard = block.ln1.fused(rows.flatten(0, 1)).view_as(rows) @ weight[own] + bias[own]
        found.append(_Arrival(heard[:-1], heard[-1], at, f"blocks.{at}.attn.hook_{into}", own))
    return found
