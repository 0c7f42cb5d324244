"""A graph's tensors beside its JSON: what safetensors holds, exact in dtype and, where it matters, in strides."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from nnzoo.tracing.entries import Parameter
from nnzoo.tracing.functions import GraphError
from nnzoo.tracing.values import DTYPES

AS_THEY_ARE = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool, torch.uint8, torch.int8}
AS_THEY_ARE |= {torch.int16, torch.int32, torch.int64}  # others are kept as bytes
_FEW_GAPS = 8  # a view's memory is at most so many times its elements, or it is kept without its gaps
_MOST_DIMENSIONS = 64  # PyTorch's own limit


class TensorStore:
    """Tensors that are put away under names; `about` says of each what safetensors does not.

    The model's own weights, and parts of them, are put away by their names alone.
    """

    def __init__(self, model: nn.Module | None, device: torch.device, *, follows_gradients: bool = False) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.about: dict[str, dict[str, Any]] = {}
        self._device, self._follows_gradients = device, follows_gradients
        self._known: dict[int, tuple[str, Tensor]] = {}  # the tensor itself too: an id is another's when it has gone
        self._model = model

    @cached_property
    def _weights(self) -> dict[int, list[tuple[str, Tensor]]]:
        """The model's, looked up when there is a tensor that may be one: that takes as long as a small trace."""
        return {} if self._model is None else _by_memory(self._model)

    def put(self, t: Tensor) -> dict[str, Any]:
        """What stands in JSON for a tensor."""
        weight = self._weight(t)
        if weight is not None:
            return {"parameter": weight}
        return {"tensor": self.name(t)}

    def name(self, t: Tensor) -> str:
        """The name under which a tensor is kept."""
        if id(t) not in self._known:
            if t.layout != torch.strided or t.is_quantized or t.is_meta or t.dtype not in DTYPES.values():
                what = "without numbers" if t.is_meta else f"{t.layout}, {t.dtype}"
                raise GraphError(f"a tensor {list(t.shape)} ({what}) cannot be stored")
            if self._follows_gradients and t.requires_grad and not t.is_leaf:
                raise GraphError(
                    f"a tensor {list(t.shape)} comes with an autograd graph, which stays here: detach() it"
                )
            name = f"t{len(self.tensors)}"
            self._known[id(t)] = name, t
            self._keep(name, t)
        return self._known[id(t)][0]

    @property
    def given(self) -> dict[str, Tensor]:
        """The very tensors that were put away, by their names."""
        return dict(self._known.values())

    def _keep(self, name: str, t: Tensor) -> None:
        plain = t.detach().resolve_conj().resolve_neg()
        self.about[name] = {
            "dtype": str(t.dtype).removeprefix("torch."),
            "shape": list(t.shape),
            "stride": list(plain.stride()) if _keeps_strides(plain.shape, plain.stride()) else None,
            "device": "model" if t.device == self._device else str(t.device),
            "requires_grad": t.requires_grad,
        }
        kept = plain.contiguous().cpu()
        if kept.untyped_storage().data_ptr() == t.untyped_storage().data_ptr():
            kept = kept.clone()  # what is stored stays as it is
        self.tensors[name] = kept if t.dtype in AS_THEY_ARE else kept.reshape(-1).view(torch.uint8)

    def _weight(self, t: Tensor) -> dict[str, Any] | None:
        if t.layout != torch.strided:
            return None
        for name, weight in self._weights.get(_memory_of(t), ()):
            offset = int(t.storage_offset()) - int(weight.storage_offset())
            whole = tuple(t.shape) == tuple(weight.shape) and t.stride() == weight.stride() and offset == 0
            if t.dtype != weight.dtype or not (whole or _lies_within(t.shape, t.stride(), offset, weight)):
                continue
            view = None if whole else [list(t.shape), list(t.stride()), offset]
            return {"name": name, "view": view, "detached": weight.requires_grad and not t.requires_grad}
        return None


def restored_tensors(about: Any, tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The tensors as they were. Raises GraphError where JSON and safetensors do not agree."""
    if not isinstance(about, dict):
        raise GraphError("the list of tensors is no object")
    return {name: _restored(name, one, tensors, device) for name, one in about.items()}


def _restored(name: str, about: Any, tensors: Mapping[str, Tensor], home: torch.device) -> Tensor:
    if not isinstance(about, dict) or set(about) != {"dtype", "shape", "stride", "device", "requires_grad"}:
        raise GraphError(f"tensor {name!r:.40}: its description is not complete")
    dtype, shape, stride = DTYPES.get(str(about["dtype"])), about["shape"], about["stride"]
    if dtype is None or not is_sizes(shape) or not (stride is None or is_sizes(stride)):
        raise GraphError(f"tensor {name!r:.40}: its dtype, shape or stride is none")
    kept = tensors.get(name)
    if not isinstance(kept, Tensor):
        raise GraphError(f"tensor {name!r:.40} is not there")
    value = _as_described(name, kept, dtype, tuple(shape))
    if stride is not None:
        if len(stride) != len(shape) or not _keeps_strides(shape, stride):
            raise GraphError(f"tensor {name!r:.40}: its strides do not fit its shape")
        value = _with_strides(value, tuple(stride))
    if about["device"] not in ("model", "cpu"):
        raise GraphError(
            f"tensor {name!r:.40} is on {about['device']!r:.40}: a graph's are on the CPU or with the model"
        )
    value = value.to(home) if about["device"] == "model" else value
    if value is kept:
        value = value.clone()  # what a run changes is its own
    if about["requires_grad"] is True and (dtype.is_floating_point or dtype.is_complex):
        value.requires_grad_()
    return value


def _as_described(name: str, kept: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    try:
        value = kept if dtype in AS_THEY_ARE else kept.clone().view(dtype).reshape(shape)
    except RuntimeError as error:
        raise GraphError(f"tensor {name!r:.40}: its bytes are no {dtype} {list(shape)}") from error
    if value.dtype != dtype or tuple(value.shape) != shape or not value.is_contiguous():
        raise GraphError(f"tensor {name!r:.40} is {value.dtype} {list(value.shape)}, not {dtype} {list(shape)}")
    return value


def _with_strides(value: Tensor, stride: tuple[int, ...]) -> Tensor:
    if value.stride() == stride:
        return value
    part = value[tuple(slice(0, 1) if step == 0 else slice(None) for step in stride)]
    out = torch.empty_strided(part.shape, stride, dtype=value.dtype, device=value.device)
    return out.copy_(part).expand(value.shape)


def is_sizes(value: Any) -> bool:
    """Whether it is a list of non-negative integers, as sizes and strides are."""
    whole = isinstance(value, list) and len(value) <= _MOST_DIMENSIONS
    return whole and all(type(n) is int and 0 <= n < 2**62 for n in value)


def _keeps_strides(shape: Any, stride: Any) -> bool:
    """Whether strides can be made again: no element twice but by a stride of 0, and few gaps."""
    held = [(step, n) for step, n in zip(stride, shape, strict=True) if n > 1 and step]
    end, count = 1, 1
    for step, n in sorted(held):
        if step < end:
            return False  # it overlaps
        end += (n - 1) * step
        count *= n
    no_memory = any(n == 0 for n in shape)
    return not no_memory and end <= _FEW_GAPS * count and all(step < 2**40 for step in stride)


def _lies_within(shape: Any, stride: Any, offset: int, weight: Tensor) -> bool:
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    return weight.is_contiguous() and all(n > 0 for n in shape) and offset >= 0 and last < weight.numel()


def _by_memory(model: nn.Module) -> dict[int, list[tuple[str, Tensor]]]:
    found: dict[int, list[tuple[str, Tensor]]] = {}
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
        found.setdefault(_memory_of(weight), []).append((name, weight))
    return found


def _memory_of(t: Tensor) -> int:
    """What two tensors have in common that look at the same memory; on the meta device they have a storage at least."""
    storage = t.untyped_storage()
    return storage._cdata if t.is_meta else storage.data_ptr()


def weight_of(model: nn.Module, parameter: Parameter) -> Tensor:
    """The weight of a model, or the part of it, that a graph names. Raises GraphError where it has none."""
    weights = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    weight = weights.get(parameter.name)
    if weight is None:
        raise GraphError(f"the model has no weight {parameter.name!r:.80}")
    if parameter.view is not None:
        size, stride, offset = parameter.view
        if len(size) != len(stride) or not _lies_within(size, stride, offset, weight):
            raise GraphError(f"{parameter.name} has no such part: {parameter.view}")
        weight = weight.as_strided(size, stride, weight.storage_offset() + offset)
    return weight.detach() if parameter.detached else weight
