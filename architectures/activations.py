"""The activation functions of MLPs, by Hugging Face's names."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    # OpenAI trained GPT-2 with this approximation; the exact GELU differs by up to 5e-4 a neuron
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
}


def gelu_fast(input: Tensor) -> Tensor:
    """The same approximation of GELU, with its constant rounded."""
    return 0.5 * input * (1 + torch.tanh(input * 0.7978845608 * (1 + 0.044715 * input * input)))


def solu(input: Tensor) -> Tensor:
    """Each neuron by its softmax among the others (https://transformer-circuits.pub/2022/solu/index.html)."""
    return input * input.softmax(dim=-1)
