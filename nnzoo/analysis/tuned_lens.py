"""The tuned lens: a logit lens that knows how each layer writes, by an affine map of each, trained to foresee the end.

Belrose et al. 2023, Eliciting Latent Predictions from Transformers with the Tuned Lens
(https://arxiv.org/abs/2303.08112).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import kl_div

from nnzoo.analysis.results import Result
from nnzoo.analysis.sites import streams_of, values_at
from nnzoo.analysis.subject import Model, Prompts, Subject, exclusive
from nnzoo.analysis.sweep import progress


@dataclass(frozen=True, eq=False)
class TunedLens:
    """x + x W + b for each layer, which `logit_lens(..., tuned=...)` puts before the last norm.

    `divergence` is how far the lens stays from what the model says in the end, on what it was trained on: [layer].
    """

    weight: Float[Tensor, "layer d_model d_model"]
    bias: Float[Tensor, "layer d_model"]
    at: str
    layers: tuple[int, ...]
    divergence: Result

    def maps(self, at: str, layers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """W [layer d_model d_model] and b [layer 1 d_model] of some layers. Raises ValueError where there are none."""
        if at != self.at or not set(layers) <= set(self.layers):
            raise ValueError(
                f"this lens was tuned at {self.at} of layers {list(self.layers)}, not at {at} of {list(layers)}"
            )
        chosen = [self.layers.index(layer) for layer in layers]
        return self.weight[chosen], self.bias[chosen][:, None]


def translated(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A stream as the last layer might have written it: x + x W + b, with the precision of the map."""
    wide = x.to(weight.dtype)
    return (wide + wide @ weight + bias).to(x.dtype)


@exclusive
def train_tuned_lens(
    model: Model,
    prompts: Prompts,
    *,
    at: str = "resid_post",
    layers: Sequence[int] | None = None,
    steps: int = 100,
    learning_rate: float = 1e-3,
) -> TunedLens:
    """Train a map for each layer on the tokens of some prompts, all of them at each step; nothing is drawn by chance.

    What is made small is the Kullback-Leibler divergence of the model's distribution from the lens's, by Adam, whose
    learning rate falls to 0. The model stays as it is; maps are of float32 at least. Train on other text than you look
    at: some thousand tokens at least, and more for a larger model. `at` and `layers` are those of `logit_lens`; a place
    that is not of the residual stream's width raises ValueError.

    >>> from nnzoo import LanguageModel
    >>> from nnzoo.analysis import logit_lens
    >>> model = LanguageModel("nnzoo/tiny-gpt2")
    >>> tuned = train_tuned_lens(model, "Everyone knows that the capital of Italy is Rome", layers=[1, 2], steps=10)
    >>> logit_lens(model, "The capital of France is", layers=[1, 2], tuned=tuned).shape
    {'layer': 2, 'pos': 5}
    """
    subject = Subject(model)
    tokens = subject.read(prompts)
    sites = streams_of(subject, tokens, at, layers)
    streams = torch.stack([value[tokens.real] for value in values_at(subject, tokens, sites.names)])
    with torch.no_grad():
        last = _log_probabilities(subject.native(tokens.ids, attention_mask=tokens.mask)[tokens.real])
    found = []
    with progress(len(streams), "tuning a lens") as bar:
        for x in streams:
            found.append(_fitted(subject, x, last, steps, learning_rate))
            bar.update()
    weight, bias, divergence = (torch.stack(parts) for parts in zip(*found, strict=True))
    result = Result(f"tuned lens at {at}", "nats a token", divergence, sites.axes[:1])
    return TunedLens(weight, bias, at, sites.layers, result)


def _fitted(
    subject: Subject, x: Float[Tensor, "some d_model"], last: Tensor, steps: int, learning_rate: float
) -> tuple[Tensor, Tensor, Tensor]:
    """A layer's map, and how far it stays from the end."""
    kind = torch.promote_types(x.dtype, torch.float32)  # in float16 Adam divides by 0
    weight = torch.zeros(2 * x.shape[1:], dtype=kind, device=x.device, requires_grad=True)
    bias = torch.zeros(x.shape[1:], dtype=kind, device=x.device, requires_grad=True)
    optimiser = torch.optim.Adam([weight, bias], lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, steps))
    for _ in range(steps):
        with torch.enable_grad():
            loss = _divergence(subject, translated(x, weight, bias), last)
        weight.grad, bias.grad = torch.autograd.grad(loss, [weight, bias])  # the model's parameters keep theirs
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        return weight.detach(), bias.detach(), _divergence(subject, translated(x, weight, bias), last)


def _divergence(subject: Subject, x: Tensor, last: Tensor) -> Tensor:
    logits = subject.native.unembed(subject.native.ln_final.fused(x))
    return kl_div(_log_probabilities(logits), last, reduction="batchmean", log_target=True)


def _log_probabilities(logits: Tensor) -> Tensor:
    return logits.log_softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
