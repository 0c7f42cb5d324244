"""What is trained through a trace: adapters, steering vectors and the model's own weights, against transformers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from families import error, folder, ids, prompt, theirs
from nnzoo import LanguageModel

TOKENS = prompt(2, 7)
LABELS = prompt(2, 7)
WIDTH = 48


class Adapter(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.down = torch.nn.Linear(WIDTH, 3, bias=False, dtype=torch.float64)
        self.up = torch.nn.Linear(3, WIDTH, bias=False, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))

    def gradients(self) -> list[Tensor]:
        return [p.grad for p in self.parameters()]


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(folder("gpt2", "default"))


def loss_of(logits: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), LABELS.flatten())


def _plain(adapter: Adapter, layers: list[int]) -> Tensor:
    """The loss of transformers' model with an adapter behind some blocks."""
    model = theirs("gpt2", "default")

    def hook(module: object, args: object, output: Tensor) -> Tensor:
        return output + adapter(output)

    handles = [model.transformer.h[layer].register_forward_hook(hook) for layer in layers]
    try:
        return loss_of(model(TOKENS).logits)
    finally:
        for handle in handles:
            handle.remove()


def _all(x: Tensor, adapter: Adapter) -> None:
    x[:] = x + adapter(x)


def _added(x: Tensor, adapter: Adapter) -> None:
    x += adapter(x)


def _row_by_row(x: Tensor, adapter: Adapter) -> None:
    for row in range(len(x)):
        x[row] += adapter(x[row])


def _view(x: Tensor, adapter: Adapter) -> None:
    flat = x.view(-1, WIDTH)
    flat.add_(adapter(flat))


@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside"])
@pytest.mark.parametrize("write", [_all, _added, _row_by_row, _view])
@pytest.mark.parametrize("layers", [[1], [0, 1, 2]])
def test_an_adapter_written_in_place_is_trained(
    model: LanguageModel, layers: list[int], write: Callable, inside: bool
) -> None:
    ours, expected = Adapter(), Adapter()
    _plain(expected, layers).backward()
    with model.trace(TOKENS, grad=not inside):
        for layer in layers:
            write(model.transformer.h[layer].output[0], ours)
        loss = loss_of(model.output)
        if inside:
            loss.backward()
    if not inside:
        loss.backward()
    for one, other in zip(ours.gradients(), expected.gradients(), strict=True):
        assert error(one, other) < 1e-9


@pytest.mark.parametrize("way", ["requires_grad_", "retain_grad", "requires_grad"])
def test_a_value_that_asked_has_its_gradient_after_a_backward_outside(model: LanguageModel, way: str) -> None:
    with model.trace(TOKENS):
        hidden = model.transformer.h[1].output[0]
        expected = torch.autograd.grad(loss_of(model.output), hidden)[0].save()
    with model.trace(TOKENS, grad=True):
        hidden = model.transformer.h[1].output[0]
        if way == "requires_grad":
            hidden.requires_grad = True
        else:
            getattr(hidden, way)()
        loss = loss_of(model.output)
    loss.backward(retain_graph=True)
    assert error(hidden.grad, expected) < 1e-10
    loss.backward()
    assert error(hidden.grad, 2 * expected) < 1e-10


def test_an_error_of_a_neighbour_comes_when_it_is_asked_for(model: LanguageModel) -> None:
    with pytest.raises(Exception, match="singular") as raised, model.trace(TOKENS):
        hidden = model.transformer.h[1].output[0]
        inverse = torch.linalg.inv(hidden[0, :3, :3] * 0)
        assert hidden[0, 0, 0].item() != 0
        seen = True
        inverse.save()
    assert seen
    assert raised.type is torch.linalg.LinAlgError


@pytest.mark.local("weights of the model get no gradients")
@ids([("gpt2", "default"), ("llama", "default")])
def test_parameters_have_the_gradients_of_transformers(family: str, setting: str) -> None:
    model, plain = LanguageModel(folder(family, setting)), theirs(family, setting)
    plain.zero_grad()
    loss_of(plain(TOKENS).logits).backward()
    model.requires_grad_(True)
    with model.trace(TOKENS):
        loss_of(model.output).backward()
    expected = {name: p.grad for name, p in plain.named_parameters()}
    for name, parameter in model.named_parameters():
        assert error(parameter.grad, expected[name]) < 1e-9, name
    plain.zero_grad()
