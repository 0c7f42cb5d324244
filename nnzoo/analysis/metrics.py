"""Metrics: one number for how a run ended, by which changes to it are compared.

A metric is a function of the logits [batch pos d_vocab] that gives a scalar or a number for each prompt [batch], whose
mean is taken. The usual ones need no function: `" Mary"` is the logit of that token after the prompt, and
`(" Mary", " John")` its difference to another's; a list of tokens has one for each prompt.

Logit differences as metrics: Wang et al. 2022, Interpretability in the Wild (https://arxiv.org/abs/2211.00593); why
rather they than probabilities: Heimersheim and Nanda 2024 (https://arxiv.org/abs/2404.15255).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nnzoo.analysis.subject import Subject, Token

Answer = Token | Sequence[Token] | Tensor  # one for all prompts, or one for each
Metric = Callable[[Tensor], Tensor] | Answer | tuple[Answer, Answer]


@dataclass(frozen=True, eq=False)
class Logit:
    """The logit of a token at a position, or its difference to another's.

    >>> logits = torch.tensor([[[0.0, 1.0, 5.0]]])
    >>> Logit(torch.tensor([2]), torch.tensor([1]))(logits)
    tensor([4.])
    """

    right: Int[Tensor, "#batch"]
    wrong: Int[Tensor, "#batch"] | None = None
    position: int = -1

    @property
    def name(self) -> str:
        return "logit" if self.wrong is None else "logit difference"

    def __call__(self, logits: Float[Tensor, "*rows batch pos d_vocab"]) -> Float[Tensor, "*rows batch"]:
        last = logits[..., self.position, :]
        right = _each(last, self.right)
        return right if self.wrong is None else right - _each(last, self.wrong)

    def of_stream(
        self,
        normed: Float[Tensor, "*rows batch d_model"],
        weight: Float[Tensor, "d_vocab d_model"],
        bias: Float[Tensor, "d_vocab"] | None,
    ) -> Float[Tensor, "*rows batch"]:
        """The same from what the unembedding reads at the position: of two columns, not of the whole vocabulary."""
        direction = weight[self.right] if self.wrong is None else weight[self.right] - weight[self.wrong]
        value = (normed * direction).sum(dim=-1)
        if bias is None:
            return value
        return value + (bias[self.right] if self.wrong is None else bias[self.right] - bias[self.wrong])


@dataclass(frozen=True, eq=False)
class Probability:
    """The probability of a token at a position.

    >>> Probability(torch.tensor([2]))(torch.zeros(1, 1, 4))
    tensor([0.2500])
    """

    right: Int[Tensor, "#batch"]
    position: int = -1
    name = "probability"

    def __call__(self, logits: Float[Tensor, "*rows batch pos d_vocab"]) -> Float[Tensor, "*rows batch"]:
        return _each(logits[..., self.position, :].softmax(dim=-1), self.right)

    def of_stream(
        self,
        normed: Float[Tensor, "*rows batch d_model"],
        weight: Float[Tensor, "d_vocab d_model"],
        bias: Float[Tensor, "d_vocab"] | None,
    ) -> Float[Tensor, "*rows batch"]:
        """The same from what the unembedding reads at the position."""
        return _each(torch.nn.functional.linear(normed, weight, bias).softmax(dim=-1), self.right)


def _each(last: Float[Tensor, "*rows batch d_vocab"], tokens: Tensor) -> Float[Tensor, "*rows batch"]:
    chosen = tokens.expand(last.shape[-2])
    return last[..., torch.arange(last.shape[-2], device=last.device), chosen]


def metric_of(subject: Subject, metric: Metric, batch: int) -> Callable[[Tensor], Tensor]:
    """What a user gave as a metric, as a function of logits. Raises ValueError for tokens that fit no batch."""
    if callable(metric) and not isinstance(metric, Tensor):
        return metric
    answers = metric if isinstance(metric, tuple) else (metric,)
    if len(answers) not in (1, 2):
        raise ValueError(f"a metric is a token, a pair (right, wrong) or a function of the logits, not {metric!r}")
    ids = [subject.ids(answer) for answer in answers]
    for one in ids:
        if len(one) not in (1, batch):
            raise ValueError(f"{len(one)} tokens for {batch} prompts: one for all, or one for each")
    return Logit(ids[0], ids[1] if len(ids) == 2 else None)


def name_of(metric: Callable[[Tensor], Tensor]) -> str:
    """What a metric measures, for a result's table."""
    return getattr(metric, "name", None) or getattr(metric, "__name__", "metric").replace("<lambda>", "metric")
