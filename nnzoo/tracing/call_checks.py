"""What a stored call must not do: edit what it does not say, hand out a weight, reach memory that is nobody's.

The first two are found out on the meta device. For the last there are arguments on which PyTorch's kernels (2.13, CPU)
were seen to read memory that was never written, or to end the process.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nnzoo.tracing.arguments import flat, name_of, to_meta
from nnzoo.tracing.effects import watched
from nnzoo.tracing.functions import GraphError
from nnzoo.tracing.graph import Node
from nnzoo.tracing.infer import at_any_position, map_tensors, told_by_shapes

MOST_PARTS = 1_000_000  # into which a value may be taken apart


def metas_of(value: Any) -> Any:
    return _mapped(value, lambda one: one.meta if isinstance(one, Node) else to_meta(one))


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same nesting, with every node and every tensor changed."""
    if isinstance(value, Node):
        return change(value)
    if isinstance(value, (tuple, list)) and not isinstance(value, torch.Size):
        parts = [_mapped(part, change) for part in value]
        return type(value)(parts)
    if isinstance(value, dict):
        return {key: _mapped(part, change) for key, part in value.items()}
    if isinstance(value, slice):
        return slice(*(_mapped(part, change) for part in (value.start, value.stop, value.step)))
    return map_tensors(change, value)


def check_edits(fn: Callable, args: tuple, kwargs: dict, target: Node | None, weights: dict[int, Tensor]) -> None:
    """Raise GraphError where a call edits another tensor than its entry says, or hands out the memory of a weight.

    NeedsValues where only numbers tell.
    """
    fresh: dict[int, Tensor] = {}
    owners: dict[int, Any] = {}

    def stand_in(one: Any) -> Tensor:
        meta = one.meta if isinstance(one, Node) else one
        if id(one) not in fresh:
            fresh[id(one)] = torch.empty_strided(meta.shape, meta.stride(), dtype=meta.dtype, device="meta")
            owners[id(one)] = one
        return fresh[id(one)]

    args_there, kwargs_there = at_any_position(fn, _mapped(args, stand_in)), _mapped(kwargs, stand_in)
    with told_by_shapes(), torch.inference_mode():  # the stand-ins, made outside, still count how often they are edited
        result, watch = watched(fn, args_there, kwargs_there)
    seen = watch.changed([*fresh.values()])
    changed = [owners[key] for n, (key, t) in enumerate(fresh.items()) if t._version or n in seen]
    if name_of(fn) == "detach_":  # it edits no number, so PyTorch does not count it
        changed = [*args[:1]]
    if changed != ([] if target is None else [target]):
        raise GraphError("it edits another tensor than it says")
    given = {t.untyped_storage()._cdata for key, t in fresh.items() if key in weights}
    leaves: list[Tensor] = []
    map_tensors(leaves.append, result)
    if any(t.untyped_storage()._cdata in given for t in leaves):
        raise GraphError("it hands out the memory of a weight; a clone of it is another tensor")


def check_arguments(fn: Callable, args: tuple, kwargs: dict) -> None:
    """Raise GraphError for arguments, nodes as their meta tensors, with which a function is not safe to call."""
    check = _CHECKS.get(name_of(fn))
    if check is not None:
        check(args, kwargs)


def _padding(args: tuple, kwargs: dict) -> None:
    every = [*flat(args), *flat(kwargs)]
    if "circular" in every and any(isinstance(one, int) and one < 0 for one in every):
        raise GraphError("circular padding by less than nothing gives memory that was never written; slice instead")


def _embedding(args: tuple, kwargs: dict) -> None:
    if any(one is True for one in (*args, *kwargs.values())):
        raise GraphError("scale_grad_by_freq and sparse are not possible here")


def _power(args: tuple, kwargs: dict) -> None:
    if any(isinstance(one, int) and abs(one) > 2**20 for one in (*flat(args), *flat(kwargs))):
        raise GraphError("a power of a matrix is at most 2**20")


def _sections(args: tuple, kwargs: dict) -> None:
    if any(isinstance(one, int) and one > MOST_PARTS for one in (*flat(args), *flat(kwargs))):
        raise GraphError(f"a value is split into more than {MOST_PARTS} parts")


def _attention(args: tuple, kwargs: dict) -> None:
    """Keys and values of one shape, and queries with as many heads, or with a multiple."""
    named = {**dict(zip(("query", "key", "value"), args, strict=False)), **kwargs}
    shapes = [tuple(getattr(named.get(one), "shape", ())) for one in ("query", "key", "value")]
    q, k, v = shapes
    fits = all(len(shape) >= 2 and 0 not in shape for shape in shapes) and q[-1] == k[-1] and k[:-1] == v[:-1]
    grouped = len(q) > 2 and q[:-3] == k[:-3] and kwargs.get("enable_gqa") is True
    if not fits or not (q[:-2] == k[:-2] or (grouped and q[-3] % k[-3] == 0)):
        said = ", ".join(str(list(shape)) for shape in shapes)
        raise GraphError(f"attention of query, key and value {said}: their shapes do not belong together")


def _batch_norm(args: tuple, kwargs: dict) -> None:
    names = ("input", "running_mean", "running_var", "weight", "bias", "training")
    if {**dict(zip(names, args, strict=False)), **kwargs}.get("training", False) is not False:
        raise GraphError("batch_norm that trains changes its statistics, which stay where they are; .eval() uses them")


_CHECKS: dict[str, Callable[[tuple, dict], None]] = {
    "batch_norm": _batch_norm,
    "pad": _padding,
    "embedding": _embedding,
    "matrix_power": _power,
    "linalg_matrix_power": _power,
    "scaled_dot_product_attention": _attention,
    **dict.fromkeys(("tensor_split", "hsplit", "vsplit", "dsplit"), _sections),
}
