"""Linear probes: what can be read off the residual stream by a straight cut.

Papers: Alain and Bengio 2016, Understanding Intermediate Layers Using Linear Classifier Probes
(https://arxiv.org/abs/1610.01644); Hewitt and Liang 2019, Designing and Interpreting Probes with Control Tasks
(https://arxiv.org/abs/1909.03368): what a probe learns of shuffled labels is its own doing.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nnzoo.analysis.results import Result
from nnzoo.analysis.sites import sites_of, values_at
from nnzoo.analysis.subject import Model, Prompts, Subject, exclusive
from nnzoo.analysis.sweep import progress


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear classifier of vectors: the largest of x W + b."""

    weight: Float[Tensor, "d n_classes"]
    bias: Float[Tensor, "n_classes"]

    def logits(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch n_classes"]:
        return x @ self.weight + self.bias

    def predict(self, x: Float[Tensor, "*batch d"]) -> Int[Tensor, "*batch"]:
        """The class of each vector."""
        return self.logits(x).argmax(dim=-1)

    def accuracy(self, x: Float[Tensor, "n d"], y: Int[Tensor, "n"]) -> float:
        """The share of vectors whose class is predicted."""
        return (self.predict(x) == y).float().mean().item()


def train_probe(
    x: Float[Tensor, "n d"], y: Int[Tensor, "n"] | Bool[Tensor, "n"] | Sequence[int], *, l2: float = 1e-2
) -> Probe:
    """Logistic regression of classes 0, 1, ... on vectors, by L-BFGS on standardised features.

    `l2` weighs the squared weights against the mean cross-entropy. Nothing is drawn by chance.

    >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.2, 0.9], [0.8, 0.1]])
    >>> train_probe(x, [0, 1, 0, 1]).predict(torch.tensor([[0.9, 0.3]]))
    tensor([1])
    """
    x = x.detach()
    y = torch.as_tensor(y, device=x.device).long()
    if len(x) != len(y):
        raise ValueError(f"{len(x)} vectors and {len(y)} labels")
    mean, scale = x.mean(dim=0), x.std(dim=0).clamp(min=1e-6)
    weight, bias = _fitted((x - mean) / scale, y, l2)
    weight = weight / scale[:, None]  # the probe takes vectors as they are
    return Probe(weight, bias - mean @ weight)


def _fitted(x: Tensor, y: Tensor, l2: float) -> tuple[Tensor, Tensor]:
    n_classes = int(y.max()) + 1
    weight = x.new_zeros(x.shape[1], n_classes).requires_grad_()
    bias = x.new_zeros(n_classes).requires_grad_()
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = torch.nn.functional.cross_entropy(x @ weight + bias, y) + l2 / 2 * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(loss)
    return weight.detach(), bias.detach()


@exclusive
def probe_layers(
    model: Model,
    prompts: Prompts,
    labels: Sequence[int] | Tensor,
    *,
    at: str = "resid_post",
    position: int = -1,
    layers: Sequence[int] | None = None,
    held_out: float = 0.3,
    l2: float = 1e-2,
    seed: int = 0,
) -> Result:
    """How well a probe of each layer tells the labels of prompts that it was not trained on: accuracy, [layer].

    `labels` are classes 0, 1, ..., one for each prompt; `held_out` is the share of prompts to test on, drawn by `seed`.
    Compare with the same call on shuffled labels.

    >>> from nnzoo import LanguageModel
    >>> model = LanguageModel("nnzoo/tiny-gpt2")
    >>> names = ["France", "Italy", "Spain", "Japan"] * 4
    >>> prompts = [f"The capital of {name} is" for name in names]
    >>> found = probe_layers(model, prompts, [0, 1, 2, 3] * 4)
    >>> found.values[-1].item()
    1.0
    """
    subject = Subject(model)
    tokens = subject.read(prompts)
    y = torch.as_tensor(labels).long()
    n, n_test = len(tokens.ids), round(held_out * len(tokens.ids))
    if len(y) != n or not 0 < n_test < n:
        raise ValueError(f"{n} prompts, {len(y)} labels, and {n_test} prompts to test on")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    test, train = order[:n_test], order[n_test:]
    sites = sites_of(subject, tokens, at, "pos", layers)
    accuracies = []
    with progress(len(sites.names), "probing") as bar:
        for value in values_at(subject, tokens, sites.names):
            x = value[:, position].flatten(1).cpu()
            accuracies.append(train_probe(x[train], y[train], l2=l2).accuracy(x[test], y[test]))
            bar.update()
    return Result(f"probes at {at}", "accuracy", torch.tensor(accuracies), sites.axes[:1])
