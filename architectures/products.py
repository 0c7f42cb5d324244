"""The product of activations and weights, by the library that is faster at it on this processor."""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

SMALL = 2**18  # numbers in a weight: below, oneDNN's own preparations take longer than what it saves
FEW = 8  # vectors: with fewer the weights' way from memory is all that counts, and PyTorch's own choice is as fast


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product x W^T + b, as `nn.functional.linear`.

    MKL, which PyTorch asks for it, makes no use of AVX-512 on processors that are not Intel's; oneDNN does, and takes
    0.7 to 0.9 of the time. PyTorch's way to it knows no gradients and no transforms. Results differ by rounding.
    """
    if (
        weight.numel() >= SMALL
        and x.dtype is torch.float32
        and not torch.is_grad_enabled()
        and _plain(x, weight)
        and _faster()
    ):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return nn.functional.linear(x, weight, bias)


def _plain(x: Tensor, weight: Tensor) -> bool:
    """Whether these are many ordinary vectors on the CPU, and nothing looks into the operations on them."""
    return (
        x.device.type == weight.device.type == "cpu"
        and x.numel() >= FEW * x.shape[-1]
        and type(x) is Tensor
        and type(weight) in (Tensor, nn.Parameter)
        and weight.dtype is torch.float32
        and forward_ad._current_level < 0
        and not torch.compiler.is_compiling()
        and torch._C._functorch.peek_interpreter_stack() is None
    )


@cache
def _faster() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available() and cpuinfo.exists()):
        return False
    text = cpuinfo.read_text()
    return "AuthenticAMD" in text and "avx512f" in text and hasattr(torch.ops.mkldnn, "_linear_pointwise")
