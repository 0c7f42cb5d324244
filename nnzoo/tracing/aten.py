"""PyTorch's inner operators by the functions that everybody knows: what torch.vmap and torch.func are made of.

A transform calls operators of `torch.ops.aten`, some of which nobody calls by hand. Each is recorded as the public
function of its name, which takes the same arguments, or as what it is made of: so a stored graph holds neither.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from nnzoo.tracing.arguments import to_meta
from nnzoo.tracing.functions import allowed

_SPACES = {"linalg_": torch.linalg, "special_": torch.special, "fft_": torch.fft}
_MADE_OF = set(
    "native_layer_norm native_group_norm nll_loss_forward mse_loss elu hardsigmoid hardswish hardtanh leaky_relu "
    "softplus log_sigmoid_forward _safe_softmax".split()
)
_FUNCTIONAL = "gelu silu mish hardshrink softshrink".split()  # of torch.nn.functional, arguments as the operator's


def recorded(op: Any, args: tuple, kwargs: dict, record: Callable[[Callable, tuple, dict], Any]) -> Any:
    """What an operator gives of lazy tensors, recorded as public functions where that is possible."""
    name = op._schema.name.removeprefix("aten::")
    if name in ("to", "_to_copy") and kwargs.get("device") == torch.device("meta"):  # shapes alone are asked for
        return to_meta(args[0]).clone()
    if name in _OTHERWISE and (call := _OTHERWISE[name](*args, **kwargs)) is not None:
        return record(*call)
    fn = _public(name)
    if fn is not None and not (name.startswith("index_put") and any(one is None for one in args[1])):
        given = {key: value for key, value in kwargs.items() if not (value is None or key == "implicit")}
        return record(fn, args, given)
    if _is_made_of_others(name) and op in torch._decomp.decomposition_table:
        return torch._decomp.decomposition_table[op](*args, **kwargs)
    return record(op, args, kwargs)


def _is_made_of_others(name: str) -> bool:
    is_backward = name.endswith(("_backward", "_backward_data")) and not name.startswith("_scaled_dot")
    return is_backward or name in _MADE_OF


@cache
def _public(name: str) -> Callable | None:
    spaces: list[tuple[Any, str]] = [(torch, name), (torch.Tensor, name)]  # of a method, `self` comes first
    if name in _FUNCTIONAL:
        spaces = [(torch.nn.functional, name)]
    for prefix, space in _SPACES.items():
        if name.startswith(prefix):
            spaces = [(space, name.removeprefix(prefix))]
    known = set(allowed().values())
    found = (getattr(space, own, None) for space, own in spaces)
    return next((fn for fn in found if fn is not None and fn in known), None)


def _slice(x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> tuple:
    return Tensor.__getitem__, (x, (*[slice(None)] * (dim % x.ndim), slice(start, end, step))), {}


def _index(x: Any, indices: Any) -> tuple:
    return Tensor.__getitem__, (x, tuple(slice(None) if one is None else one for one in indices)), {}


def _to_copy(x: Any, *, dtype: Any = None, device: Any = None, memory_format: Any = None, **_: Any) -> tuple:
    return Tensor.to, (x,), {"dtype": dtype or x.dtype, "copy": True} | ({} if device is None else {"device": device})


def _embedding_backward(grad: Any, indices: Any, rows: int, padding: int, scaled: bool) -> tuple | None:
    if padding >= 0 or scaled:
        return None
    width = grad.shape[-1]
    zeros = torch.zeros(rows, width, dtype=grad.dtype, device=grad.device)
    return torch.index_add, (zeros, 0, indices.reshape(-1), grad.reshape(-1, width)), {}


_OTHERWISE: dict[str, Callable[..., tuple | None]] = {
    "slice": _slice,
    "index": _index,
    "_to_copy": _to_copy,
    "alias": lambda x: (Tensor.view, (x, x.shape), {}),
    "_unsafe_view": lambda x, size: (Tensor.reshape, (x, size), {}),
    "_softmax": lambda x, dim, half_to_float: (torch.softmax, (x, dim), {}),
    "_log_softmax": lambda x, dim, half_to_float: (torch.log_softmax, (x, dim), {}),
    "embedding_dense_backward": _embedding_backward,
    "embedding": lambda weight, indices, *_: (torch.nn.functional.embedding, (indices, weight), {}),
}
