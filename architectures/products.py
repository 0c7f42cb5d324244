"""The product of activations and weights, in the way that is fastest on this processor."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

SMALL = 2**18  # numbers in a weight: below, oneDNN's own preparations take longer than what it saves
FEW = 8  # vectors: with fewer the weights' way from memory is all that counts, and PyTorch's own choice is as fast
MANY = 96  # vectors: with more MKL's threads share the work well
BLOCKS = 4  # of a product, one for each of so many threads, or two
WIDE = 2**24  # numbers in a weight: from here on oneDNN is faster on Intel's processors too

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


def choice() -> tuple[bool, bool, int]:
    """What the way depends on beside the operands: whether PyTorch chooses it or oneDNN is allowed, and the threads."""
    return _chosen_by_pytorch.get(), torch._C._get_mkldnn_enabled(), torch.get_num_threads()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The product x W^T + b, as `nn.functional.linear`; x is [... d_in], W [d_out d_in].

    PyTorch asks MKL for it. In float32 there is a faster way for eight vectors or more: `by_onednn` on processors by
    AMD, and `on_intel` on Intel's. It is taken where nothing follows the operations, gradients least of all, and not
    where `torch.backends.mkldnn.flags(enabled=False)` says so. Its rounding errors are up to three times as large, 1e-7
    of the largest value on average.
    """
    if weight.numel() >= SMALL and not torch.is_grad_enabled():
        way = faster_way()
        if way is not None and _ours(x, weight, bias):
            return way(x, weight, bias)
    return nn.functional.linear(x, weight, bias)


def by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A product by a library that uses AVX-512 on any processor that has it; MKL does on Intel's only.

    It takes 0.7 to 0.9 of MKL's time on AMD's and, where weights are wide, 0.5 to 0.95 on Intel's. PyTorch's way to it
    knows no gradients and no transforms.
    """
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def on_intel(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A product of few vectors `in_blocks` or, of a wide weight as `nn.Linear` stores it, `by_onednn`."""
    d_out, d_in = weight.shape
    if x.numel() <= MANY * d_in:
        if weight.stride() == (1, d_out) and d_in % BLOCKS == 0 and torch.get_num_threads() in (2, BLOCKS):
            return in_blocks(x, weight, bias)
        if weight.numel() >= WIDE and weight.is_contiguous():
            return by_onednn(x, weight, bias)
    return nn.functional.linear(x, weight, bias)


def in_blocks(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A product as the sum of four, each of a part of d_in, for weights stored [d_in d_out], as GPT-2 has them.

    For few vectors MKL's threads get in each other's way there: two are faster than one by 1.1 to 1.5. With a block
    each it is 1.5 to 2.1.
    """
    d_out, d_in = weight.shape
    parts = x.reshape(-1, BLOCKS, d_in // BLOCKS).transpose(0, 1)
    product = torch.bmm(parts, weight.t().view(BLOCKS, d_in // BLOCKS, d_out)).sum(dim=0)
    return (product if bias is None else product.add_(bias)).view(*x.shape[:-1], d_out)


def _ours(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether another way than PyTorch's is safe."""
    return _plain(x) and _fits(x, weight) and (bias is None or _added(bias, weight)) and _undisturbed()


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
def faster_way() -> Callable[[Tensor, Tensor, Tensor | None], Tensor] | None:
    """The one to take on this processor; None: PyTorch's own."""
    cpuinfo = Path("/proc/cpuinfo")
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available() and cpuinfo.exists()):
        return None
    text = cpuinfo.read_text()
    if "avx512f" not in text or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return None
    return by_onednn if "AuthenticAMD" in text else on_intel if "GenuineIntel" in text else None
