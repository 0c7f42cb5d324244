"""What `model.generate(prompt, ...)` gives: entered by a `with` it is a trace, used as a tensor it is the ids."""

from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from nnzoo.tracing.infer import map_tensors
from nnzoo.tracing.lazy import LazyTensor
from nnzoo.tracing.tracer import Tracer


class Generated(Tensor):
    """Ids [batch total] that are made when somebody first uses them; then the same object is a plain tensor.

    So `ids = model.generate(prompt)` and `with model.generate(prompt) as tracer: ...` are one call.
    """

    _make: Callable[[], Tensor]
    _open: Callable[[], Tracer]
    _tracer: Tracer

    @staticmethod
    def __new__(cls, make: Callable[[], Tensor], open: Callable[[], Tracer]) -> "Generated":
        pending = torch.Tensor._make_wrapper_subclass(cls, (), dtype=torch.long)
        pending._make, pending._open = make, open
        return pending

    @classmethod
    def __torch_function__(cls, fn: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        args, kwargs = map_tensors(_made, (args, kwargs or {}))
        return fn(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's stub forgets that it is a class method
        cls, fn: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        raise RuntimeError(f"{fn} reached ids that are not generated yet; use PyTorch's own functions on them")

    def make(self) -> Tensor:
        """The ids: made now, if they were not yet and if it was not entered as a trace."""
        return self if hasattr(self, "_tracer") else _made(self)

    def __enter__(self) -> Tracer:
        self._tracer = self._open()
        return self._tracer.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        return self._tracer.__exit__(kind, error, traceback)

    def __repr__(self) -> str:  # type: ignore[override]  # torch's has an argument that only it uses
        return repr(_made(self))


def _made(t: Tensor) -> Tensor:
    if isinstance(t, Generated):
        ids = t._make()
        if isinstance(ids, LazyTensor):  # of a session that is recorded, and not over: another use asks again
            t._make = lambda: ids
            return ids
        torch.utils.swap_tensors(t, ids.view_as(ids))
    return t
