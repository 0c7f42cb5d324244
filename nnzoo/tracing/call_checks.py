"""What a stored call must not do, found out on the meta device: edit what it does not say, hand out a weight."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nnzoo.tracing.arguments import to_meta
from nnzoo.tracing.functions import GraphError
from nnzoo.tracing.graph import Node
from nnzoo.tracing.infer import NeedsValues, map_tensors


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
    """Raise GraphError where a call edits another tensor than its entry says, or hands out the memory of a weight."""
    fresh: dict[int, Tensor] = {}
    owners: dict[int, Any] = {}

    def stand_in(one: Any) -> Tensor:
        meta = one.meta if isinstance(one, Node) else one
        if id(one) not in fresh:
            fresh[id(one)] = torch.empty_strided(meta.shape, meta.stride(), dtype=meta.dtype, device="meta")
            owners[id(one)] = one
        return fresh[id(one)]

    with torch.no_grad():
        try:
            result = fn(*_mapped(args, stand_in), **_mapped(kwargs, stand_in))
        except NotImplementedError as error:
            raise NeedsValues from error
        except (RuntimeError, TypeError) as error:
            if "meta" in str(error):
                raise NeedsValues from error
            raise
    changed = [owners[key] for key, t in fresh.items() if t._version]
    if changed != ([] if target is None else [target]):
        raise GraphError("it edits another tensor than it says")
    given = {t.untyped_storage()._cdata for key, t in fresh.items() if key in weights}
    leaves: list[Tensor] = []
    map_tensors(leaves.append, result)
    if any(t.untyped_storage()._cdata in given for t in leaves):
        raise GraphError("it hands out the memory of a weight; a clone of it is another tensor")
