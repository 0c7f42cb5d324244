"""Parameters that are found at once are PyTorch's parameters all the same: whatever changes them there is seen."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from nnzoo.architectures.gpt2 import Conv1D
from nnzoo.architectures.norms import LayerNorm, RMSNorm
from nnzoo.architectures.parameters import Linear
from small_models import small

LAYERS = {
    "Linear": lambda: Linear(3, 3),
    "Conv1D": lambda: Conv1D(3, 3),
    "LayerNorm": lambda: LayerNorm(3, 1e-5),
    "RMSNorm": lambda: RMSNorm(3, 1e-5),
}
X = torch.tensor([[[1.0, 2.0, 4.0]]])


@pytest.fixture(params=LAYERS)
def layer(request) -> nn.Module:
    """Each of the layers whose parameters are quick."""
    return LAYERS[request.param]()


class Zero(nn.Module):
    """The parametrization by nothing."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 0 * weight


def test_a_call_with_other_parameters_uses_them(layer):
    zeros = {name: torch.zeros_like(value) for name, value in layer.named_parameters()}
    assert layer(X).count_nonzero() > 0
    assert functional_call(layer, zeros, (X,)).count_nonzero() == 0


def test_a_parametrized_weight_is_used(layer):
    if hasattr(layer, "bias"):
        nn.init.zeros_(layer.bias)
    assert layer(X).count_nonzero() > 0
    parametrize.register_parametrization(layer, "weight", Zero())
    assert layer(X).count_nonzero() == 0


def test_a_parameter_that_is_set_is_the_one_found(layer):
    layer.weight = new = nn.Parameter(torch.ones_like(layer.weight))
    assert layer.weight is new
    assert layer.get_parameter("weight") is new


def test_a_model_moved_to_meta_leaves_nothing_behind():
    model = small("llama").to("meta")
    assert {module.weight.device.type for module in model.modules() if hasattr(module, "weight")} == {"meta"}


def test_a_parameter_that_is_gone_is_missed_in_pytorchs_words():
    layer = Linear(3, 3)
    del layer.weight
    with pytest.raises(AttributeError, match="'Linear' object has no attribute 'weight'"):
        _ = layer.weight
