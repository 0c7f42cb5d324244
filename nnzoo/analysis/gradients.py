"""Attribution patching: every patch at once, to first order, from one backward pass; and integrated gradients.

Papers: Nanda 2023, Attribution Patching (https://www.neelnanda.io/mechanistic-interpretability/attribution-patching);
Syed et al. 2023, Attribution Patching Outperforms Automated Circuit Discovery (https://arxiv.org/abs/2310.10348);
Sundararajan et al. 2017, Axiomatic Attribution for Deep Networks (https://arxiv.org/abs/1703.01365); Hanna et al. 2024,
Have Faith in Faithfulness (https://arxiv.org/abs/2403.17806).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nnzoo.analysis.metrics import Metric
from nnzoo.analysis.results import Effects, Result
from nnzoo.analysis.sites import Sites, sites_of, values_at
from nnzoo.analysis.subject import Model, Prompts, Subject, Tokens, exclusive
from nnzoo.analysis.sweep import Base, progress
from nnzoo.architectures.hooks import HookFunction, HookPoint


@exclusive
def attribute_patches(
    model: Model,
    base: Prompts,
    source: Prompts,
    metric: Metric,
    *,
    at: str = "resid_pre",
    by: str | None = None,
    layers: Sequence[int] | None = None,
    steps: int = 0,
) -> Effects:
    """What `patch_activations` finds, estimated by gradients: one pass instead of one for each patch.

    An effect is (value on `source` - value on `base`) x the metric's gradient at `base`. With `steps` the gradient is
    the mean over so many points between the two values of a layer (integrated gradients), which costs `steps` rows for
    each layer; then the effects of a layer sum to that of patching it whole. Arguments and result are those of
    `patch_activations`.

    >>> from nnzoo import LanguageModel
    >>> model = LanguageModel("nnzoo/tiny-gpt2")
    >>> clean = "When Mary and John went to the store, John gave a drink to"
    >>> corrupted = "When Mary and John went to the store, Mary gave a drink to"
    >>> attribute_patches(model, corrupted, clean, (" Mary", " John"), at="z").shape
    {'layer': 4, 'head': 4}
    """
    subject = Subject(model)
    base_tokens, source_tokens = subject.pair(base, source)
    sites = sites_of(subject, base_tokens, at, by, layers)
    run, end = Base(subject, base_tokens, metric), Base(subject, source_tokens, metric)
    source_values = values_at(subject, source_tokens, sites.names)
    if steps:
        changes = _integrated(run, sites, source_values, steps)
    else:
        values, gradients = gradients_at(run, sites.names)
        pairs = zip(source_values, values, gradients, strict=True)
        changes = [(new - old) * gradient for new, old, gradient in pairs]
    scores = run.score + torch.stack([sites.summed(change) for change in changes])
    title = f"attribution patching {at}" + (f", {steps} steps" if steps else "")
    return Effects(title, run.quantity, scores, sites.axes, run.score, end.score)


def gradients_at(run: Base, names: Sequence[str]) -> tuple[list[Tensor], list[Tensor]]:
    """Values at some hook points of a run, and the metric's gradients there; no parameter's .grad is touched."""
    kept: dict[str, Tensor] = {}
    with torch.enable_grad(), run.native.hooks([(list(names), keeping(kept))]):
        logits = run.native(run.tokens.ids, attention_mask=run.tokens.mask)
        score = run.metric(logits).mean()
        found = torch.autograd.grad(score, [kept[name] for name in names], allow_unused=True)
    values = [kept[name].detach() for name in names]
    return values, [
        torch.zeros_like(value) if gradient is None else gradient for value, gradient in zip(values, found, strict=True)
    ]


def keeping(kept: dict[str, Tensor]) -> Callable[[Tensor, HookPoint], Tensor]:
    """A hook that keeps each value as the place of a gradient: the model goes on with what it keeps."""

    def hook(value: Tensor, hook: HookPoint) -> Tensor:
        place = value if value.requires_grad else value.requires_grad_()
        kept[hook.name] = place
        return place

    return hook


def _integrated(run: Base, sites: Sites, source_values: list[Tensor], steps: int) -> list[Tensor]:
    """(source - base) x the mean gradient between the two, layer by layer."""
    base_values = values_at(run.subject, run.tokens, sites.names)
    changes = []
    with progress(len(sites.names), "integrated gradients") as bar:
        for layer, name, new, old in zip(sites.layers, sites.names, source_values, base_values, strict=True):
            points = _between(old, new, steps)
            x = run.streams[layer].repeat(steps, 1, 1)
            mask = run.tokens.repeated(steps).mask
            with torch.enable_grad(), run.native.hooks([(name, _putting(points))]):
                logits = run.native(x, start_at_layer=layer, attention_mask=mask)
                score = torch.stack([run.metric(one).mean() for one in logits.unflatten(0, (steps, -1))]).sum()
                gradient = torch.autograd.grad(score, points)[0]
            changes.append((new - old) * gradient.unflatten(0, (steps, -1)).mean(dim=0))
            bar.update()
    return changes


def _between(old: Tensor, new: Tensor, steps: int) -> Tensor:
    """Points on the way, each in the middle of its part, [steps*batch ...], to take gradients at."""
    way = (torch.arange(steps, device=old.device, dtype=old.dtype) + 0.5) / steps
    return torch.cat([old + share * (new - old) for share in way]).requires_grad_()


def _putting(points: Tensor) -> HookFunction:
    return lambda value, hook: points


@exclusive
def integrated_gradients(model: Model, prompts: Prompts, metric: Metric, *, steps: int = 32) -> Result:
    """How much each token's embedding adds to the metric, on the way from zero embeddings to the prompt's: [pos].

    The values sum to the metric's difference between the two, but for the error of summing instead of integrating.
    Mean over prompts. Sundararajan et al. 2017 (https://arxiv.org/abs/1703.01365).

    >>> from nnzoo import LanguageModel
    >>> model = LanguageModel("nnzoo/tiny-gpt2")
    >>> found = integrated_gradients(model, "The capital of France is", (" Paris", " Rome"))
    >>> found.top(1)[0].place
    {'pos': ' France'}
    """
    subject = Subject(model)
    tokens = subject.read(prompts)
    run = Base(subject, tokens, metric)
    embeds = values_at(subject, tokens, ["hook_embed"])[0]
    gradient = _gradient_of_embeds(run, tokens, embeds, steps)
    values = (embeds * gradient).sum(dim=(0, -1))
    return Result("integrated gradients", run.quantity, values, (subject.axis("pos", tokens),))


def _gradient_of_embeds(run: Base, tokens: Tokens, embeds: Tensor, steps: int) -> Tensor:
    points = _between(torch.zeros_like(embeds), embeds, steps)
    many = tokens.repeated(steps)
    with torch.enable_grad(), run.native.hooks([("hook_embed", _putting(points))]):
        logits = run.native(many.ids, attention_mask=many.mask)
        score = torch.stack([run.metric(one).mean() for one in logits.unflatten(0, (steps, -1))]).sum()
        gradient = torch.autograd.grad(score, points)[0]
    return gradient.unflatten(0, (steps, -1)).mean(dim=0)
