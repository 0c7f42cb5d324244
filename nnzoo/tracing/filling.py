"""When a trace has run, lazy tensors become plain ones: the same Python objects, in whatever holds them."""

import warnings
import weakref
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nnzoo.tracing.graph import LOGITS, Node
from nnzoo.tracing.lazy import LazyTensor
from nnzoo.tracing.recorder import Recorder, TraceError


def held(recorder: Recorder) -> list[LazyTensor]:
    """The lazy tensors that somebody still holds."""
    alive = [lazy for ref in recorder.alive if (lazy := ref()) is not None]
    recorder.alive = []  # swapping refuses tensors with weak references
    return alive


def fill_in(lazies: list[LazyTensor], values: dict[Node, Any], *, with_graph: bool) -> None:
    """Turn every lazy tensor whose value is there into it; a value's `.grad` comes along.

    Raises TraceError for those that PyTorch refuses to turn, when all others are.
    """
    sharing = _count_storages(values)
    refused = []
    while lazies:
        lazy = lazies.pop()
        node = lazy._node
        if node not in values:
            continue  # of a step that was not made: using it says so
        recorder = lazy._recorder
        alias = _alias(values[node], sharing, node, saved=node in recorder.saved, with_graph=with_graph)
        try:
            torch.utils.swap_tensors(lazy, alias)
            if with_graph and node in recorder.differentiated and values[node].requires_grad:
                values[node].register_hook(partial(_add_gradient, weakref.ref(lazy)))
        except RuntimeError:  # PyTorch swaps no tensor that somebody has a weak reference to
            refused.append(f"{lazy!r}, made at {node.line}")
    if refused:
        raise TraceError(
            f"values with weak references to them cannot be filled in: {'; '.join(refused)}. All others are"
        )


def _alias(value: Tensor, sharing: dict[int, int], node: Node, *, saved: bool, with_graph: bool) -> Tensor:
    kept = _compact(value if with_graph else value.detach(), sharing)
    alias = kept.view_as(kept)  # a fresh one: autograd's graph may hold the value itself
    gradient = value.grad if value.is_leaf or value.retains_grad else None
    if gradient is not None:
        alias.grad = gradient
    if node.hook == LOGITS:
        alias.logits = kept.view_as(kept)  # type: ignore[attr-defined]
    if saved:
        alias.value = kept.view_as(kept)  # type: ignore[attr-defined]  # older code asks a saved value for its value
    return alias


def _add_gradient(held: "weakref.ref[Tensor]", gradient: Tensor) -> None:
    """A later backward pass has come to the value that a tensor stands for."""
    value = held()
    if value is None:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch: it is no leaf, and nothing else fills its .grad
        before = value.grad
    value.grad = gradient.clone() if before is None else before + gradient


def _count_storages(values: dict[Node, Any]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for value in values.values():
        pointer = value.untyped_storage().data_ptr()
        counts[pointer] = counts.get(pointer, 0) + 1
    return counts


def _compact(value: Tensor, sharing: dict[int, int]) -> Tensor:
    """A small slice does not keep a large activation alive, unless another value needs the same memory."""
    storage = value.untyped_storage()
    if sharing[storage.data_ptr()] > 1 or storage.nbytes() <= 2 * value.nbytes:
        return value
    return value.clone()
