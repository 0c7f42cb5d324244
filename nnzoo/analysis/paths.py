"""Path patching: what one head does by its direct path to another, or to the end, and by no other way.

Papers: Wang et al. 2022, Interpretability in the Wild (https://arxiv.org/abs/2211.00593); Goldowsky-Dill et al. 2023,
Localizing Model Behavior with Path Patching (https://arxiv.org/abs/2304.05969).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from nnzoo.analysis.metrics import Metric
from nnzoo.analysis.results import Effects
from nnzoo.analysis.sites import values_at
from nnzoo.analysis.subject import Model, Prompts, Subject
from nnzoo.analysis.sweep import Base, Edit, Experiment, progress

Head = tuple[int, int]  # layer, head


def patch_paths(
    model: Model,
    base: Prompts,
    source: Prompts,
    metric: Metric,
    *,
    receivers: Sequence[Head] | None = None,
    into: str = "q",
    through_mlps: bool = True,
    batch_size: int | None = None,
) -> Effects:
    """The metric of the run on `base` after what each head writes on `source` was sent down its direct paths.

    The sender's output is exchanged while every other head keeps what it wrote on `base`; MLPs are computed anew on
    the way (in Wang et al.'s manner), or keep what they wrote too (`through_mlps=False`). What arrives is the end of
    the residual stream, or, for `receivers` [(layer, head), ...], their queries, keys or values (`into` "q", "k", "v"):
    these are then put into the run on `base`, whose other heads see no change but theirs. With grouped queries the
    keys and values of a head are those of its whole group.

    Values are [layer head], by the sender; one that stands before no receiver leaves the metric as it is. Raises
    ValueError for a receiver that is not there, and where prompts do not match.

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
    run, end = Base(subject, base_tokens, metric), Base(subject, source_tokens, metric)
    frozen = _Frozen(subject, run, values_at(subject, source_tokens, _names(subject, "attn.hook_z")), through_mlps)
    if wanted is None:
        scores, title = _to_the_end(subject, run, frozen), "direct paths to the logits"
    else:
        scores = _to_heads(run, frozen, wanted, into, batch_size)
        title = f"paths into {into} of {', '.join(f'L{layer}H{head}' for layer, head in wanted)}"
    axes = (subject.axis("layer"), subject.axis("head"))
    return Effects(title, run.quantity, scores, axes, run.score, end.score)


def _names(subject: Subject, place: str) -> list[str]:
    return [f"blocks.{i}.{place}" for i in range(subject.n_layers)]


def _checked(subject: Subject, receivers: Sequence[Head], into: str) -> list[Head]:
    if into not in ("q", "k", "v"):
        raise ValueError(f"into is 'q', 'k' or 'v', not {into!r}")
    if not receivers:
        raise ValueError("receivers are (layer, head) pairs, or None for the end of the model; the list is empty")
    for layer, head in receivers:
        if not (0 <= layer < subject.n_layers and 0 <= head < subject.n_heads):
            size = f"{subject.n_layers} layers of {subject.n_heads} heads"
            raise ValueError(f"there is no head {head} in layer {layer}: the model has {size}")
    return list(receivers)


class _Frozen:
    """The residual stream after one head was exchanged, while all other heads keep what they wrote."""

    def __init__(self, subject: Subject, run: Base, source_z: list[Tensor], through_mlps: bool) -> None:
        self.subject, self.through_mlps, self.source_z = subject, through_mlps, source_z
        mlps = subject.native.has_mlps
        places = [
            "attn.hook_z",
            "hook_attn_out",
            *(["hook_resid_mid", "hook_mlp_out"] if mlps else ["hook_resid_post"]),
        ]
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


@torch.no_grad()
def _to_the_end(subject: Subject, run: Base, frozen: _Frozen) -> Float[Tensor, "layer head"]:
    rows = []
    with progress(subject.n_layers, "path patching") as bar:
        for layer in range(subject.n_layers):
            *_, (_, x) = frozen.entering(layer)
            rows.append(run.scores_of(x.flatten(0, 1)))
            bar.update()
    return torch.stack(rows)


@dataclass(frozen=True)
class _Arrival:
    """A receiver's new query, key or value, for every head of a layer that sends: [head batch pos d_head]."""

    name: str
    head: int
    values: Tensor


@torch.no_grad()
def _to_heads(
    run: Base, frozen: _Frozen, receivers: Sequence[Head], into: str, batch_size: int | None
) -> Float[Tensor, "layer head"]:
    subject = run.subject
    scores = torch.full((subject.n_layers, subject.n_heads), run.score, dtype=run.streams[0].dtype)
    experiments, senders = [], []
    for layer in range(max(layer for layer, _ in receivers)):
        arrivals = _arrivals(subject, frozen, layer, receivers, into)
        start = min(at for at, _ in receivers if at > layer)
        for head in range(subject.n_heads):
            experiments.append(Experiment(start, edits=_edits(arrivals, head)))
            senders.append((layer, head))
    found = run.run(experiments, batch_size, "path patching")
    for (layer, head), score in zip(senders, found, strict=True):
        scores[layer, head] = score
    return scores


def _arrivals(subject: Subject, frozen: _Frozen, layer: int, receivers: Sequence[Head], into: str) -> list[_Arrival]:
    streams = dict(frozen.entering(layer))
    found = []
    for at, head in receivers:
        if at > layer:
            block: Any = subject.native.blocks[at]
            weight, bias = (getattr(block.attn, f"{kind}_{into.upper()}") for kind in "Wb")
            own = head * len(weight) // subject.n_heads  # with grouped queries: the head whose keys and values it has
            x = streams[at]
            normed = block.ln1.fused(x.flatten(0, 1)).view_as(x)
            found.append(_Arrival(f"blocks.{at}.attn.hook_{into}", own, normed @ weight[own] + bias[own]))
    return found


def _edits(arrivals: list[_Arrival], sender: int) -> dict[str, Edit]:
    """What one sender changes, by hook point: several receivers may stand at one."""

    def at(name: str) -> Edit:
        def edit(rows: Tensor) -> None:
            for one in arrivals:
                if one.name == name:
                    rows[:, :, one.head] = one.values[sender]

        return edit

    return {one.name: at(one.name) for one in arrivals}
