"""Backward passes as PyTorch has them: through a graph once unless it is kept, and from where a value asks for it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from families import error, folder, prompt, theirs
from nnzoo import LanguageModel

TOKENS = prompt(2, 7)
WEIGHT = torch.linspace(-1, 1, 48, dtype=torch.float64)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(folder("gpt2", "default"))


def two_losses(logits: Tensor, **options: bool) -> None:
    logits[0, 0, 0].backward(**options)
    logits[0, 1, 5].backward()


def one_loss_twice(logits: Tensor, **options: bool) -> None:
    loss = logits.logsumexp(-1).sum()
    loss.backward(**options)
    loss.backward()


TWICE: list[Callable] = [two_losses, one_loss_twice]


def plain_gradient(backward: Callable, **options: bool) -> Tensor:
    """The gradient of the second block's output in transformers' model."""
    model, seen = theirs("gpt2", "default"), []

    def hook(module: object, args: object, output: Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    handle = model.transformer.h[1].register_forward_hook(hook)
    try:
        backward(model(TOKENS).logits, **options)
    finally:
        handle.remove()
        model.zero_grad()
    return seen[0].grad


@pytest.mark.parametrize("backward", TWICE)
def test_a_graph_that_is_kept_is_gone_through_again(model: LanguageModel, backward: Callable) -> None:
    with model.trace(TOKENS):
        gradient = model.transformer.h[1].output[0].grad
        backward(model.output, retain_graph=True)
        kept = model.transformer.h[1].output[0].grad
    expected = plain_gradient(backward, retain_graph=True)
    assert error(kept, expected) < 1e-10
    assert gradient.shape == kept.shape


@pytest.mark.parametrize("backward", TWICE)
def test_a_graph_that_is_used_up_is_the_error_of_pytorch(model: LanguageModel, backward: Callable) -> None:
    with pytest.raises(RuntimeError) as theirs_said:
        plain_gradient(backward)
    with pytest.raises(RuntimeError) as ours_said, model.trace(TOKENS):
        backward(model.output)
    assert str(ours_said.value).startswith(str(theirs_said.value))
    assert ours_said.traceback[-1].name == backward.__name__
    second = backward.__code__.co_firstlineno + (1 if backward is two_losses else 2)
    assert ours_said.traceback[-1].lineno == second


def test_prompts_of_one_batch_use_up_their_own_graphs(model: LanguageModel) -> None:
    with model.trace() as tracer:
        for _ in range(2):
            with tracer.invoke(TOKENS):
                hidden = model.transformer.h[1].output[0]
                model.output[0, 0, 0].backward()
                gradient = hidden.grad
    assert gradient.any()


@pytest.mark.parametrize("way", ["requires_grad_", "requires_grad"])
def test_a_detached_value_that_asks_begins_a_graph(model: LanguageModel, way: str) -> None:
    with model.trace(TOKENS):
        stream = model.transformer.h[1].output[0]
        leaf = stream.detach()
        if way == "requires_grad":
            leaf.requires_grad = True
        else:
            assert leaf.requires_grad_() is leaf
        (leaf * WEIGHT).sum().backward()
    assert error(leaf.grad, WEIGHT.expand_as(leaf)) < 1e-12


def test_a_graph_that_keeps_nothing_can_be_gone_through_again(model: LanguageModel) -> None:
    with model.trace(TOKENS):
        leaf = model.transformer.h[1].output[0].detach().requires_grad_()
        loss = (leaf + 1).sum()
        loss.backward()
        loss.backward()
    assert (leaf.grad == 2).all()


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda h: h.argmax(-1).requires_grad_(), "only floating-point"),
        (lambda h: h.requires_grad_(False), "no leaf"),
        (lambda h: setattr(h, "requires_grad", False), "no leaf"),
    ],
)
def test_what_cannot_be_asked_of_gradients_is_refused(model: LanguageModel, ask: Callable, said: str) -> None:
    with pytest.raises(RuntimeError, match=said), model.trace(TOKENS):
        ask(model.transformer.h[1].output[0])
