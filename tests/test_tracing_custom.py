"""torch.autograd.Functions on traced values: their values, and that gradients go through their own backward."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from families import error, folder, ours, prompt
from nnzoo import LanguageModel
from nnzoo.tracing.recorder import TraceError

TOKENS = prompt(2, 9)
RESID = "blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return LanguageModel(folder("gpt2", "default"))


@pytest.fixture(scope="module")
def plain() -> Tensor:
    with torch.no_grad():
        return ours("gpt2", "default").run_with_cache(TOKENS)[1][RESID]


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 100


class Scaled(torch.autograd.Function):
    """Its context is set up apart, it saves tensors, gives two results, and takes what is no tensor."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, power: int) -> tuple[Tensor, Tensor]:
        y = x.clone()
        y.mul_(weight)
        return y.sum(-1), y**power

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, weight, _ = inputs
        ctx.save_for_backward(x, weight)
        ctx.scale = x.abs().amax()

    @staticmethod
    def backward(ctx: Any, first: Tensor, second: Tensor) -> tuple:
        x, _ = ctx.saved_tensors
        return second * ctx.scale + first[..., None], (second * x).sum((0, 1)), None


class Noisy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        mask = F.dropout(torch.ones_like(x), 0.5)
        ctx.save_for_backward(mask)
        return x * F.dropout(mask * x, 0.5)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * ctx.saved_tensors[0] * 3


class Branching(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x.exp().log() * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 100


class Reversed(torch.autograd.Function):
    """Gives back what it is given."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


class HalfReversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x * 2

    @staticmethod
    def backward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        return second - first


WEIGHT = torch.linspace(-1, 1, 48, dtype=torch.float64, requires_grad=True)
APPLIED: dict[str, Callable[[Tensor], Tensor]] = {
    "one result": Doubled.apply,
    "several results": lambda x: sum(y.square().sum() for y in Scaled.apply(x, WEIGHT, 3)),
    "its argument": lambda x: Reversed.apply(x).square(),
    "its argument and more": lambda x: sum(y.square().sum() for y in HalfReversed.apply(x)),
    "random numbers": Noisy.apply,
    "a branch": Branching.apply,
    "applied twice": lambda x: Doubled.apply(Doubled.apply(x) + x),
    "in a comprehension": lambda x: torch.stack([Doubled.apply(row) for row in x]),
    "checkpoint": lambda x: checkpoint(lambda y: (y * WEIGHT).tanh(), x, use_reentrant=False),
    "reentrant checkpoint": lambda x: checkpoint(lambda y: (y * WEIGHT).tanh(), x, use_reentrant=True),
}


def _expected(apply: Callable[[Tensor], Tensor], plain: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    x = plain.clone().requires_grad_()
    torch.manual_seed(5)
    y = apply(x)
    WEIGHT.grad = None
    y.sum().backward()
    weight, WEIGHT.grad = WEIGHT.grad, None
    return y.detach(), x.grad, weight


OWN_CODE = pytest.mark.local("an autograd.Function of the user's is code, which is not sent")


@pytest.mark.parametrize("name", [one if one == "checkpoint" else pytest.param(one, marks=OWN_CODE) for one in APPLIED])
class TestTheirOwnBackward:
    def test_a_backward_goes_through_it(self, model: LanguageModel, plain: Tensor, name: str) -> None:
        value, gradient, of_weight = _expected(APPLIED[name], plain)
        with model.trace(TOKENS) as tracer:
            hidden = tracer.read(RESID)
            torch.manual_seed(5)
            y = APPLIED[name](hidden)
            y.sum().backward()
            hidden.grad.save()
        assert error(y, value) < 1e-10
        assert error(hidden.grad, gradient) < 1e-10
        assert (of_weight is None) == (WEIGHT.grad is None)
        if of_weight is not None:
            assert error(WEIGHT.grad, of_weight) < 1e-10

    def test_so_does_autograd_grad(self, model: LanguageModel, plain: Tensor, name: str) -> None:
        _, gradient, _ = _expected(APPLIED[name], plain)
        if name == "reentrant checkpoint":
            pytest.skip("PyTorch refuses it")
        with model.trace(TOKENS) as tracer:
            hidden = tracer.read(RESID)
            torch.manual_seed(5)
            (given,) = torch.autograd.grad(APPLIED[name](hidden).sum(), hidden)
        assert error(given, gradient) < 1e-10

    def test_so_does_a_graph_that_is_carried_out(self, model: LanguageModel, plain: Tensor, name: str) -> None:
        value, gradient, _ = _expected(APPLIED[name], plain)
        nudge = torch.zeros_like(plain, requires_grad=True)
        with model.trace(TOKENS) as tracer:
            torch.manual_seed(5)
            y = APPLIED[name](tracer.read(RESID) + nudge)
        y.sum().backward()
        assert error(y, value) < 1e-10
        assert error(nudge.grad, gradient) < 1e-10


class Shifted(torch.autograd.Function):
    by: Tensor

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x + Shifted.by

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 100


class TestWhatIsRefused:
    def test_a_value_past_its_arguments_has_no_gradient(self, model: LanguageModel, plain: Tensor) -> None:
        with model.trace(TOKENS) as tracer:
            hidden = tracer.read(RESID)
            Shifted.by = hidden * 2
            y = Shifted.apply(hidden)
            del Shifted.by
        assert error(y, 3 * plain) < 1e-10
        for ask in (lambda y, x: y.sum().backward(), lambda y, x: torch.autograd.grad(y.sum(), x)):
            with pytest.raises(TraceError, match=r"autograd\.Function at"), model.trace(TOKENS) as tracer:
                hidden = tracer.read(RESID)
                Shifted.by = hidden * 2
                ask(Shifted.apply(hidden), hidden)

    def test_an_input_changed_in_place_is_refused(self, model: LanguageModel) -> None:
        class InPlace(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, x: Tensor) -> Tensor:
                ctx.mark_dirty(x)
                return x.mul_(2)

        with pytest.raises(TraceError, match="clone"), model.trace(TOKENS) as tracer:
            InPlace.apply(tracer.read(RESID))


@OWN_CODE
def test_nothing_is_held_on_to(model: LanguageModel) -> None:
    with model.trace(TOKENS) as tracer:
        y = Noisy.apply(tracer.read(RESID)).sum()
        assert sum(ref() is not None for ref in tracer.recorder.alive) == 1
    assert y.shape == ()


@OWN_CODE
def test_a_probe_in_a_loop_over_steps_has_its_function(model: LanguageModel) -> None:
    with model.generate(TOKENS[:1], max_new_tokens=3, do_sample=False) as tracer:
        with tracer.iter[:]:
            doubled = Doubled.apply(tracer.read(RESID)).save()
        with tracer.iter[:]:
            expected = (tracer.read(RESID) * 2).save()
    assert len(doubled) == len(expected) == 3
    assert all(error(one, other) < 1e-10 for one, other in zip(doubled, expected, strict=True))
