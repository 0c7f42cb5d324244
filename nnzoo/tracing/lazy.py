"""LazyTensor: a tensor of which only the history is known.

It is a `torch.Tensor` to everybody who asks (isinstance, einops, nn.Module, annotations), and all that is done to it
goes through `__torch_function__` to the recorder of its trace. When the trace has run, the same Python object has
become a plain `torch.Tensor`.
"""

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from nnzoo.tracing.graph import LOGITS, Node


class LazyTensor(Tensor):
    """A value that a trace will compute. Reading a number out of it runs the model just that far."""

    _node: Node
    _recorder: Any

    @staticmethod
    def __new__(cls, node: Node, recorder: Any) -> "LazyTensor":
        dtype = torch.float32 if node.meta is None else node.meta.dtype  # torch.tensor([x, y]) asks
        lazy = torch.Tensor._make_wrapper_subclass(cls, (), dtype=dtype)
        lazy._node, lazy._recorder = node, recorder
        recorder.alive.append(weakref.ref(lazy))
        return lazy

    @classmethod
    def __torch_function__(cls, fn: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        lazy = first_lazy((args, kwargs))
        assert lazy is not None, "PyTorch calls this for a traced argument"
        return lazy._recorder.record(fn, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's stub forgets that it is a class method
        cls, fn: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        raise RuntimeError(f"{fn} reached a traced value below Python; use PyTorch's own functions on it")

    def save(self) -> Any:
        """Keep the value; here, whatever you still hold is kept, and over a wire only what is saved.

        Inside a `with tracer.iter[...]` over several steps it gives a list, of one value a step.
        """
        return self._recorder.save(self)

    @property
    def value(self) -> "LazyTensor":
        """Itself: older code asks for `.value`."""
        return self

    @property
    def logits(self) -> "LazyTensor":
        """What the model's output is, by the name that Hugging Face gives it."""
        if self._node.hook != LOGITS:
            raise AttributeError("only the model's output has .logits")
        return self

    @property
    def loss(self) -> "LazyTensor":
        """The mean cross-entropy of the prompt's labels, in nats, where it was given with `labels=`."""
        if self._node.hook != LOGITS:
            raise AttributeError("only the model's output has .loss")
        return self._recorder.loss_of(self)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.unbind(0))

    def __repr__(self) -> str:  # type: ignore[override]  # torch's has an argument that only it uses
        meta = self._node.meta
        if meta is None:
            return f"LazyTensor({self._node})"
        return f"LazyTensor({self._node}, shape={list(meta.shape)}, dtype={meta.dtype})"

    def __str__(self) -> str:
        return str(self._recorder.look(self._node))

    def __format__(self, spec: str) -> str:
        return format(self._recorder.look(self._node), spec)


def first_lazy(value: Any) -> LazyTensor | None:
    """The first traced value in a nesting of arguments."""
    if isinstance(value, LazyTensor):
        return value
    if isinstance(value, dict):
        value = value.values()
    elif isinstance(value, slice):
        value = (value.start, value.stop, value.step)
    elif not isinstance(value, (tuple, list)):
        return None
    return next((found for part in value if (found := first_lazy(part)) is not None), None)
