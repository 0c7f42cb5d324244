"""Ablation: what the model loses when a part of it says nothing, or nothing in particular.

Zeros are far from anything the later layers know; a part's mean, or what it wrote on another prompt (resampling),
takes the information away and leaves the rest. Means: Wang et al. 2022 (https://arxiv.org/abs/2211.00593); resampling:
Chan et al. 2022, Causal Scrubbing (https://www.lesswrong.com/posts/JvZhhzycHu2Yd57RN).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from nnzoo.analysis.metrics import Metric
from nnzoo.analysis.results import POSITIONS, Effects
from nnzoo.analysis.sites import sites_of, values_at
from nnzoo.analysis.subject import Model, Prompts, Subject, Tokens, exclusive, lock_of
from nnzoo.analysis.sweep import Base
from nnzoo.architectures.hooked_model import Hooks
from nnzoo.architectures.hooks import HookFunction, HookPoint

MODES = ("zero", "mean", "resample")


@exclusive
def ablate(
    model: Model,
    prompts: Prompts,
    metric: Metric,
    *,
    at: str = "z",
    by: str | None = None,
    layers: Sequence[int] | None = None,
    mode: str = "zero",
    reference: Prompts | None = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Effects:
    """The metric after each part alone was taken away: heads (`at` "z"), MLPs ("mlp_out"), attentions, neurons, ...

    What stands there instead is, by `mode`, "zero"; the "mean" over the `reference` prompts and their positions (by
    default over `prompts`); or, to "resample", what the same part has on another prompt of the reference, drawn for
    each prompt by `seed`, as many tokens long. `at`, `by` and the result are those of `patch_activations`: "head" where
    there is one, else the whole; `.change` says by how much each part matters.

    >>> from nnzoo import LanguageModel
    >>> model = LanguageModel("nnzoo/tiny-gpt2")
    >>> heads = ablate(model, "The capital of France is", (" Paris", " Rome"))
    >>> heads.shape
    {'layer': 4, 'head': 4}
    >>> ablate(model, "The capital of France is", (" Paris", " Rome"), at="mlp_out").shape
    {'layer': 4}
    """
    subject = Subject(model)
    tokens = subject.read(prompts)
    by = by if by is not None or at in ("z", "q", "k", "v", "pattern", "result") else ""
    sites = sites_of(subject, tokens, at, by, layers)
    instead = _instead(subject, tokens, sites.names, mode, reference, seed)
    run = Base(subject, tokens, metric)
    scores = run.run(sites.replacements(instead), batch_size, f"ablating {at}")
    return Effects(f"ablating {at} ({mode})", run.quantity, scores.view(sites.shape), sites.axes, run.score)


def _instead(
    subject: Subject, tokens: Tokens, names: Sequence[str], mode: str, reference: Prompts | None, seed: int
) -> list[Tensor]:
    """What stands at each hook point instead, [batch ...]."""
    if mode not in MODES:
        raise ValueError(f"mode is one of {', '.join(MODES)}, not {mode!r}")
    if mode == "zero":
        if reference is not None:
            raise ValueError("zeros need no reference: mode is 'mean' or 'resample'")
        return [torch.zeros_like(value) for value in values_at(subject, tokens, names)]
    others = tokens if reference is None else subject.read(reference)
    values = values_at(subject, others, names)
    if mode == "resample":
        chosen = _others(tokens, others, seed)
        return [value[chosen] for value in values]
    shapes = [value.shape for value in values_at(subject, tokens, names)]
    axes = [subject.native.hook_points[name].axes for name in names]
    return [mean_of(v, a, others).expand(s) for v, a, s in zip(values, axes, shapes, strict=True)]


def mean_of(value: Tensor, axes: str, tokens: Tokens) -> Tensor:
    """The mean of a hook point's value over prompts and positions that are no padding, its axes kept with size 1.

    Where two axes are positions (a pattern) it is the mean over prompts of each query and key.
    """
    symbols = axes.split()
    positions = [i for i, symbol in enumerate(symbols) if symbol in POSITIONS]
    if len(positions) != 1:
        return value.mean(dim=0, keepdim=True)
    shape = [len(tokens.ids) if i == 0 else tokens.n_pos if i in positions else 1 for i in range(value.ndim)]
    real = tokens.real.view(shape).to(value)
    return (value * real).sum(dim=(0, *positions), keepdim=True) / real.sum()


def _others(tokens: Tokens, others: Tokens, seed: int) -> Tensor:
    """For each prompt another one of the reference, as long: by chance, and never itself."""
    if others.n_pos != tokens.n_pos:
        raise ValueError(f"resampling needs prompts of the same length: {tokens.n_pos} and {others.n_pos} tokens")
    generator = torch.Generator().manual_seed(seed)
    same = (others.ids[None] == tokens.ids[:, None]).all(dim=-1)
    if same.all(dim=1).any():
        raise ValueError("resampling needs another prompt: pass reference= with some, or more prompts")
    return torch.multinomial((~same).float().cpu(), 1, generator=generator)[:, 0].to(tokens.ids.device)


@contextmanager
def ablated(
    model: Model,
    *,
    heads: Sequence[tuple[int, int]] = (),
    attentions: Sequence[int] = (),
    mlps: Sequence[int] = (),
    mode: str = "zero",
    reference: Prompts | None = None,
) -> Iterator[None]:
    """Inside the `with` the model runs without some heads (layer, head), attentions and MLPs (by layer), all at once.

    `mode` is "zero", or "mean" over the `reference` prompts. Whatever runs the model is without them: a call, an
    analysis, a generation.

    >>> from nnzoo import LanguageModel
    >>> model = LanguageModel("nnzoo/tiny-gpt2")
    >>> before = model("The capital of France is")
    >>> with ablated(model, heads=[(0, 1), (2, 3)], mlps=[1]):
    ...     after = model("The capital of France is")
    >>> (before != after).any().item(), (model("The capital of France is") == before).all().item()
    (True, True)
    """
    subject = Subject(model)
    places: list[tuple[str, int | None]] = [(f"blocks.{layer}.attn.hook_z", head) for layer, head in heads]
    places += [(f"blocks.{layer}.hook_attn_out", None) for layer in attentions]
    places += [(f"blocks.{layer}.hook_mlp_out", None) for layer in mlps]
    if not places:
        raise ValueError("nothing is named to be ablated: heads=[(layer, head), ...], attentions=[...] or mlps=[...]")
    subject.check_heads(heads)
    with lock_of(model):
        means = _means(subject, [name for name, _ in places], mode, reference)
        hooks: Hooks = [(name, _silencing(head, means.get(name))) for name, head in places]
        with subject.native.hooks(hooks):
            yield


def _means(subject: Subject, names: list[str], mode: str, reference: Prompts | None) -> dict[str, Tensor]:
    if mode not in ("zero", "mean"):
        raise ValueError(f"mode is 'zero' or 'mean' for runs of any prompts, not {mode!r}")
    if (mode == "mean") != (reference is not None):
        raise ValueError("mode='mean' is the mean over reference=..., and zeros need none")
    if reference is None:
        return {}
    names, tokens = list(dict.fromkeys(names)), subject.read(reference)
    points = subject.native.hook_points
    values = values_at(subject, tokens, names)
    return {name: mean_of(v, points[name].axes, tokens) for name, v in zip(names, values, strict=True)}


def _silencing(head: int | None, mean: Tensor | None) -> HookFunction:
    def hook(value: Tensor, hook: HookPoint) -> None:
        part = slice(None) if head is None else head
        value[:, :, part] = 0 if mean is None else mean[:, :, part]

    return hook
