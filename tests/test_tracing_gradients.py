"""Random bodies with gradients, of several prompts, against eager PyTorch on the native model, each prompt alone."""

import random
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor

from families import PLAIN, error, folder, ids, ours, prompt
from nnzoo import LanguageModel

ENDS = [
    "hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_out", "hook_resid_post", "attn.hook_z",
    "attn.hook_q", "attn.hook_v", "mlp.hook_post", "ln1.hook_out", "attn.hook_pattern",
]  # fmt: skip
PLACES = ["hook_embed", *(f"blocks.{layer}.{end}" for layer in range(3) for end in ENDS), "ln_final.hook_out"]
EDITS = [lambda x: None, lambda x: x.mul_(1.3), lambda x: x[:, -1].mul_(0.5)]
FLOWS = [lambda g: None, lambda g: g.mul_(2.0), lambda g: g[:, 0].zero_()]
STYLES = ["before", "after", "with", "torch.autograd.grad"]
RESID = "blocks.0.hook_resid_post"


@cache
def traced(family: str, setting: str) -> LanguageModel:
    return LanguageModel(folder(family, setting))


@dataclass
class Body:
    """What is done in one invoke: edits at places, a loss of logits and places, gradients in some order."""

    tokens: Tensor
    places: list[str]
    edits: list[int]
    flows: list[int]
    style: str
    order: list[int]

    @classmethod
    def draw(cls, chance: random.Random) -> "Body":
        places = chance.sample(PLACES, chance.randint(1, 4))
        numbers = range(len(places))
        return cls(
            torch.randint(2, 97, (chance.randint(1, 2), chance.randint(1, 9))),
            places,
            [chance.randrange(3) for _ in numbers],
            [chance.randrange(3) for _ in numbers],
            chance.choice(STYLES),
            chance.sample(numbers, len(places)),
        )

    def trace(self, tracer: object) -> tuple[Tensor, dict[int, Tensor]]:
        """The loss and the gradients by their place's number."""
        values = [tracer.read(place) for place in self.places]
        for value, edit in zip(values, self.edits, strict=True):
            EDITS[edit](value)
        loss = self.loss(tracer.result, values)
        if self.style == "torch.autograd.grad":
            return loss, dict(enumerate(torch.autograd.grad(loss, values)))
        if self.style == "before":
            gradients = {i: values[i].grad for i in self.order}
            loss.backward()
            return loss, gradients
        if self.style == "after":
            loss.backward()
            return loss, {i: values[i].grad * 1 for i in self.order}
        gradients = {}
        with loss.backward():
            for i in self.order:
                gradient = values[i].grad
                gradients[i] = gradient.clone()
                FLOWS[self.flows[i]](gradient)
        return loss, gradients

    def eager(self, model: torch.nn.Module) -> tuple[Tensor, dict[int, Tensor]]:
        values: dict[int, Tensor] = {}
        gradients: dict[int, Tensor] = {}

        def passing(value: Tensor, hook: object) -> Tensor:
            i = self.places.index(hook.name)
            values[i] = value = value.clone()
            EDITS[self.edits[i]](value)
            value.register_hook(lambda gradient: flow(i, gradient))
            return value

        def flow(i: int, gradient: Tensor) -> Tensor:
            gradients[i] = gradient.clone()
            on = gradient.clone()
            if self.style == "with":
                FLOWS[self.flows[i]](on)
            return on

        logits = model.run_with_hooks(self.tokens, fwd_hooks=[(place, passing) for place in self.places])
        loss = self.loss(logits, [values[i] for i in range(len(values))])
        loss.backward()
        model.zero_grad()
        return loss, gradients

    @staticmethod
    def loss(logits: Tensor, values: list[Tensor]) -> Tensor:
        return logits.pow(2).mean() + sum(0.01 * value.pow(2).sum() for value in values)


@ids(PLAIN)
@pytest.mark.parametrize("seed", range(6))
def test_gradients_are_those_of_each_prompt_alone(family: str, setting: str, seed: int) -> None:
    torch.manual_seed(seed)
    chance = random.Random(seed)
    bodies = [Body.draw(chance) for _ in range(chance.randint(1, 3))]
    got = []
    with traced(family, setting).trace() as tracer:
        for body in bodies:
            with tracer.invoke(body.tokens):
                got.append(body.trace(tracer))
    for body, (loss, gradients) in zip(bodies, got, strict=True):
        expected, theirs = body.eager(ours(family, setting))
        assert error(loss.detach(), expected.detach()) < 1e-9
        for i in body.order:
            scale = theirs[i].abs().max().clamp(min=1e-9)
            assert ((gradients[i].detach() - theirs[i]).abs() <= 1e-8 * scale).all(), (body, i)


class TestSeveralPrompts:
    def test_a_gradient_asked_for_first_is_that_of_its_own_prompt(self) -> None:
        alone = []
        tokens = [prompt(1, 9), prompt(1, 4)]
        model = traced("gpt2", "default")
        for one in tokens:
            with model.trace(one) as tracer:
                hidden = tracer.read(RESID)
                tracer.result.pow(2).sum().backward()
                alone.append(hidden.grad)
        together = []
        with model.trace() as tracer:
            for one in tokens:
                with tracer.invoke(one):
                    together.append(tracer.read(RESID).grad)
                    tracer.result.pow(2).sum().backward()
        for a, b in zip(together, alone, strict=True):
            assert error(a, b) < 1e-9

    def test_autograd_grad_of_one_after_the_backward_of_another(self) -> None:
        with traced("gpt2", "default").trace() as tracer:
            with tracer.invoke(prompt(1, 9)):
                tracer.result.sum().backward()
            with tracer.invoke(prompt(1, 4)):
                (gradient,) = torch.autograd.grad(tracer.result.sum(), tracer.read(RESID))
        assert gradient.shape == (1, 4, 48) and gradient.abs().sum() > 0

    def test_a_gradient_of_an_earlier_pass(self) -> None:
        with traced("gpt2", "default").trace() as tracer:
            with tracer.invoke(prompt(1, 9)):
                late = tracer.read("blocks.2.hook_resid_post")
            with tracer.invoke(prompt(1, 4)):
                tracer.read(RESID)[:, -1] = late[:, -1]
                gradient = late.grad
                tracer.result.sum().backward()
        assert gradient[:, -1].abs().sum() > 0 and (gradient[:, :-1] == 0).all()
