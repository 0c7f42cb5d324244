"""Steering: a direction of the residual stream that moves what the model writes.

Papers: Turner et al. 2023, Activation Addition (https://arxiv.org/abs/2308.10248); Rimsky et al. 2023, Steering Llama 2
via Contrastive Activation Addition (https://arxiv.org/abs/2312.06681); Marks and Tegmark 2023, The Geometry of Truth
(https://arxiv.org/abs/2310.06824) on differences of means.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from nnzoo.analysis.sites import streams_of, values_at
from nnzoo.analysis.subject import Model, Prompts, Subject, exclusive, lock_of
from nnzoo.architectures.hooks import HookPoint
from nnzoo.architectures.names import get_act_name
from nnzoo.generation import generate


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """A direction [d_model] for a place of the residual stream.

    >>> from nnzoo import LanguageModel
    >>> model = LanguageModel("nnzoo/tiny-gpt2")
    >>> vector = steering_vector(model, "The capital of France is", "The capital of Italy is", layer=2)
    >>> vector.generate(model, "The capital of Italy is", max_new_tokens=1)
    ['The capital of Italy is Paris']
    """

    vector: Float[Tensor, "d_model"]
    layer: int
    at: str = "resid_pre"

    @property
    def name(self) -> str:
        """The hook point at which it is added."""
        return get_act_name(self.at, self.layer)

    @contextmanager
    def added(self, model: Model, scale: float = 1.0) -> Iterator[None]:
        """Inside the `with`, `scale` times the vector is added at every position, whoever runs the model."""
        native = Subject(model).native
        change = scale * self.vector.to(native.device, native.dtype)

        def add(value: Tensor, hook: HookPoint) -> Tensor:
            return value + change

        with lock_of(model), native.hooks([(self.name, add)]):
            yield

    def generate(self, model: Model, prompts: Prompts, scale: float = 1.0, **options: Any) -> list[str]:
        """Texts that the model writes with the vector added; options are those of `model.generate`."""
        subject = Subject(model)
        tokens = subject.read(prompts)
        with self.added(model, scale):
            ids = generate(subject.native, tokens.ids, tokens.mask, tokenizer=subject.tokenizer, **options)
        real = tokens.real.tolist()
        kept = [row[len(mask) - sum(mask) :] for row, mask in zip(ids.tolist(), real, strict=True)]
        return [subject.tokenizer.decode(row) for row in kept]


@exclusive
def steering_vector(
    model: Model,
    positive: Prompts,
    negative: Prompts,
    layer: int,
    *,
    at: str = "resid_pre",
    position: int | None = -1,
) -> SteeringVector:
    """The mean of the residual stream on some prompts, less that on others: a direction from the latter to the former.

    `at` is "resid_pre", "resid_mid", "resid_post", "attn_out" or "mlp_out" of `layer`; `position` the token that is
    looked at, by default the last; None: the mean over all tokens of a prompt. The vector is [d_model], in the stream's
    own units. Raises KeyError for a place that no block has, ValueError for one of another width, or for a layer that
    there is not.

    >>> from nnzoo import LanguageModel
    >>> model = LanguageModel("nnzoo/tiny-gpt2")
    >>> towns = steering_vector(model, ["Rome is", "Paris is"], ["The book is"], layer=2, position=None)
    >>> towns.vector.shape, towns.name
    (torch.Size([96]), 'blocks.2.hook_resid_pre')
    """
    subject = Subject(model)
    sites = streams_of(subject, subject.read(positive), at, [layer])
    positive_mean, negative_mean = (
        _mean(subject, prompts, sites.names[0], position) for prompts in (positive, negative)
    )
    return SteeringVector(positive_mean - negative_mean, sites.layers[0], at)


def _mean(subject: Subject, prompts: Prompts, name: str, position: int | None) -> Float[Tensor, "d_model"]:
    tokens = subject.read(prompts)
    [value] = values_at(subject, tokens, [name])
    if position is not None:
        return value[:, position].mean(dim=0)
    real = tokens.real[..., None].to(value)
    return ((value * real).sum(dim=1) / real.sum(dim=1)).mean(dim=0)
