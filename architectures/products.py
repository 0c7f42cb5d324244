"""The product of activations and weights, by the library that is faster at it on this processor."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

SMALL = 2**18  # numbers in a weight: below, oneDNN's own preparations take longer than what it saves
FEW = 8  # vectors: with fewer the weights' way from memory is all that counts, and PyTorch's own choice is as fast

_chosen_by_pytorch: ContextVar[bool] = ContextVar("products are PyTorch's own choice", default=False)
_followed: ContextVar[bool] = ContextVar("the mode that is on takes all operations as they come", default=False)


@contextmanager
def chosen_by_pytorch() -> Iterator[None]:
    """Inside the `with`, products are those of `nn.functional.linear`, to the last bit.

    >>> x, weight = torch.randn(8, 512), torch.randn(512, 512)
    >>> with chosen_by_pytorch():
    ...     bool((linear(x, weight, None) == nn.functional.linear(x, weight)).all())
    True
    """
    token = _chosen_by_pytorch.set(True)
    try:
        yield
    finally:
        _chosen_by_pytorch.reset(token)


@contextmanager
def followed() -> Iterator[None]:
    """Inside the `with` one mode may look into operations (a TorchDispatchMode): it is no reason for other ones."""
    token = _followed.set(True)
    try:
        yield
    finally:
        _followed.reset(token)


def choice() -> tuple[bool, bool]:
    """What the library depends on beside the operands: whether PyTorch chooses it, and whether oneDNN is allowed."""
    return _chosen_by_pytorch.get(), torch._C._get_mkldnn_enabled()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product x W^T + b, as `nn.functional.linear`; x is [... d_in], W [d_out d_in].

    MKL, which PyTorch asks for it, makes no use of AVX-512 on processors that are not Intel's; oneDNN does, and takes
    0.7 to 0.9 of the time. PyTorch's way to it knows no gradients and no transforms, so it is taken without them only,
    and not where `torch.backends.mkldnn.flags(enabled=False)` says so. Rounding errors are two to three times MKL's,
    1e-7 of the largest value on average.
    """
    if weight.numel() >= SMALL and not torch.is_grad_enabled() and _ours(x, weight, bias):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return nn.functional.linear(x, weight, bias)


def _ours(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether oneDNN is the one to ask, and safe to ask."""
    return _plain(x) and _fits(x, weight) and (bias is None or _added(bias, weight)) and _undisturbed() and _faster()


def _plain(x: Tensor) -> bool:
    """Whether this is an ordinary tensor of float32 on the CPU."""
    return (
        x.dtype is torch.float32
        and x.device.type == "cpu"
        and x.layout is torch.strided
        and type(x) in (Tensor, nn.Parameter)
    )


def _fits(x: Tensor, weight: Tensor) -> bool:
    """Whether these are many vectors and a matrix for them: oneDNN's errors would not say what is wrong."""
    return (
        x.dim() > 0
        and x.shape[-1] == weight.shape[-1]
        and x.numel() >= FEW * x.shape[-1]
        and weight.dim() == 2
        and _plain(weight)
    )


def _added(bias: Tensor, weight: Tensor) -> bool:
    """Whether this is one number for each output, one after the other: oneDNN reads them so without asking."""
    return bias.shape == weight.shape[:1] and bias.is_contiguous() and _plain(bias)


def _undisturbed() -> bool:
    """Whether nothing changes the operations on tensors now, or looks into them: autocast, torch.func, a compiler."""
    return (
        not _chosen_by_pytorch.get()
        and torch._C._get_mkldnn_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch._C._is_tracing()
        and forward_ad._current_level < 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._len_torch_dispatch_stack() == int(_followed.get())
        and torch._C._len_torch_function_stack() == 0
    )


@cache
def _faster() -> bool:
    """Whether this is an AMD processor with AVX-512, and PyTorch has both libraries."""
    cpuinfo = Path("/proc/cpuinfo")
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available() and cpuinfo.exists()):
        return False
    text = cpuinfo.read_text()
    return "AuthenticAMD" in text and "avx512f" in text and hasattr(torch.ops.mkldnn, "_linear_pointwise")
