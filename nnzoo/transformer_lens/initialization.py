"""New weights as TransformerLens draws them: in the same order, so that a seed gives the same model.

Papers: Glorot and Bengio 2010, https://proceedings.mlr.press/v9/glorot10a.html (xavier); He et al. 2015,
https://arxiv.org/abs/1502.01852 (kaiming); Yang et al. 2022, https://arxiv.org/abs/2203.03466 (muP).
"""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


def calc_fan_in_and_fan_out(tensor: Tensor) -> tuple[int, int]:
    """How many numbers a weight [*head d_in d_out] reads and gives; a vector reads one.

    >>> import torch
    >>> calc_fan_in_and_fan_out(torch.zeros(4, 10, 3))
    (10, 12)
    """
    shape = tensor.shape
    if len(shape) == 1:
        return 1, shape[0]
    if len(shape) not in (2, 3):
        raise ValueError(f"a weight is [d_out], [d_in d_out] or [head d_in d_out], not {list(shape)}")
    return shape[-2], shape[-1] * (shape[0] if len(shape) == 3 else 1)


def init_xavier_uniform_(param: Tensor, gain: float | int = 1.0) -> Tensor:
    """Uniform, with the variance between what keeps values and what keeps gradients as large as they are."""
    bound = gain * math.sqrt(6 / sum(calc_fan_in_and_fan_out(param)))
    return nn.init.uniform_(param, -bound, bound)


def init_xavier_normal_(param: Tensor, gain: float | int = 1.0) -> Tensor:
    """Normal, with the variance between what keeps values and what keeps gradients as large as they are."""
    return nn.init.normal_(param, std=gain * math.sqrt(2 / sum(calc_fan_in_and_fan_out(param))))


def init_kaiming_uniform_(
    param: Tensor, a: float | int = 0, nonlinearity: Any = "relu", gain: float | int = 1.0, mode: str = "fan_in"
) -> Tensor:
    """Uniform, with the variance that keeps values (or with mode "fan_out" gradients) as large behind an activation."""
    bound = _kaiming(param, a, nonlinearity, gain, mode, 3)
    return nn.init.uniform_(param, -bound, bound)


def init_kaiming_normal_(
    param: Tensor, a: float | int = 0, nonlinearity: Any = "relu", gain: float | int = 1.0, mode: str = "fan_in"
) -> Tensor:
    """Normal, with the variance that keeps values (or with mode "fan_out" gradients) as large behind an activation."""
    return nn.init.normal_(param, std=_kaiming(param, a, nonlinearity, gain, mode, 1))


def _kaiming(param: Tensor, a: float | int, nonlinearity: Any, gain: float | int, mode: str, factor: int) -> float:
    fan_in, fan_out = calc_fan_in_and_fan_out(param)
    fan = fan_in if mode == "fan_in" else fan_out
    return gain * nn.init.calculate_gain(nonlinearity, a) * math.sqrt(factor / fan)


def _mup(name: str, param: Tensor) -> Tensor:
    fan_in, _ = calc_fan_in_and_fan_out(param)
    return nn.init.normal_(param, std=1.0 if "embed" in name else 1 / fan_in**0.5)  # "unembed" too, as there


INIT_MODES: dict[str, Callable[[float], Callable[[str, Tensor], Any]]] = {
    "gpt2": lambda size: lambda _, param: nn.init.normal_(param, std=size),
    "xavier_uniform": lambda size: lambda _, param: init_xavier_uniform_(param, gain=size),
    "xavier_normal": lambda size: lambda _, param: init_xavier_normal_(param, gain=size),
    "kaiming_uniform": lambda size: lambda _, param: init_kaiming_uniform_(param, gain=size),
    "kaiming_normal": lambda size: lambda _, param: init_kaiming_normal_(param, gain=size),
    "muP": lambda size: _mup,
}
