"""What models are made of: PyTorch's modules, called with less ado."""

from typing import Any

from torch import nn
from torch.nn.modules import module as pytorch


class Module(nn.Module):
    """An nn.Module that is called in half the time, where nobody listens with PyTorch's own hooks.

    A block calls ten modules and more, and PyTorch's way to `forward` takes 0.7 us each time. Its hooks, of one module
    or of all, and `module.compile()` are seen to by PyTorch as ever.

    >>> import torch
    >>> class Double(Module):
    ...     def forward(self, x):
    ...         return 2 * x
    >>> double = Double()
    >>> handle = double.register_forward_hook(lambda module, args, output: output + 1)
    >>> double(torch.tensor(3))
    tensor(7)
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if (
            self._forward_hooks
            or self._forward_pre_hooks
            or self._backward_hooks
            or self._backward_pre_hooks
            or self._compiled_call_impl is not None
            or pytorch._global_forward_hooks
            or pytorch._global_forward_pre_hooks
            or pytorch._global_backward_hooks
            or pytorch._global_backward_pre_hooks
        ):
            return super().__call__(*args, **kwargs)
        return self.forward(*args, **kwargs)
