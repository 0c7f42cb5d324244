"""LazyTensor: a tensor of which only the history is known.

It is a `torch.Tensor` to everybody who asks (isinstance, einops, nn.Module, annotations), and all that is done to it
goes through `__torch_function__` to the recorder of its trace. When the trace has run, the same Python object has
become a plain `torch.Tensor`.
"""

import sys
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
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
        meta = node.meta  # torch.tensor([x, y]) asks for the dtype, torch.vmap for the shape
        if meta is None:
            lazy = torch.Tensor._make_wrapper_subclass(cls, (), dtype=torch.float32)
        else:
            lazy = torch.Tensor._make_wrapper_subclass(cls, meta.shape, meta.stride(), dtype=meta.dtype)
        lazy._node, lazy._recorder = node, recorder
        recorder.alive.append(weakref.ref(lazy))
        return lazy

    @classmethod
    def __torch_function__(cls, fn: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        lazy = first_lazy((args, kwargs))
        assert lazy is not None, "PyTorch calls this for a traced argument"
        if torch._C._are_functorch_transforms_active() and _is_transformed(fn, (args, kwargs)):
            with torch._C.DisableTorchFunctionSubclass():  # what it is made of comes by __torch_dispatch__
                return fn(*args, **(kwargs or {}))
        return lazy._recorder.record(fn, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's stub forgets that it is a class method
        cls, fn: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        lazy = first_lazy((args, kwargs))
        if lazy is not None and _in_transform():
            from nnzoo.tracing.aten import recorded  # it stands on this module

            result = recorded(fn, args, kwargs or {}, lazy._recorder.record)
            if result is lazy and fn._schema.is_mutable:  # turned in place, its own shape has to follow
                with torch._C.DisableTorchFunctionSubclass():
                    lazy.data = LazyTensor(lazy._node, lazy._recorder)
            return result
        raise RuntimeError(
            f"{fn} reached a traced value below Python: compiled code (torch.jit.script) and copies by torch.tensor(x) "
            "cannot be recorded. Call the Python function itself; for a copy, x.clone()"
        )

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


_DUAL = (torch._VF._make_dual, torch._VF._unpack_dual)  # how torch.func.jvp begins and ends


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


def _is_transformed(fn: Callable, value: Any) -> bool:
    """Whether a tensor in a nesting of arguments is that of a torch.vmap, torch.func.grad or torch.func.jvp."""
    if fn in _DUAL:
        return True
    leaves = [one for one in torch.utils._pytree.tree_leaves(value) if isinstance(one, Tensor)]
    return any(torch._C._functorch.is_functorch_wrapped_tensor(one) or _is_dual(one) for one in leaves)


def _is_dual(one: Tensor) -> bool:
    """Whether a tensor has a tangent."""
    if torch._C._functorch.maybe_current_level() is None:
        return False
    with torch._C.DisableTorchFunctionSubclass():
        return torch._VF._unpack_dual(one, level=0).tangent is not None


def _in_transform() -> bool:
    """Whether the line is part of a torch.vmap or torch.func.grad."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not frame.f_globals.get("__name__", "").startswith("torch._functorch"):
        frame = frame.f_back
    return frame is not None
